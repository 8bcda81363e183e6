"""`cwm doctor`: find what is wrong with an installation and show the command that fixes it.

Each module checks one part, `checkup` runs them all. Checks read and ask, but never change anything.
"""
