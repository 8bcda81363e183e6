"""Windows that nobody asked for: when they are made, how they are marked, and how many are kept.

Control thread. `mark` imports the standard library only, because the client's hooks use it.
"""
