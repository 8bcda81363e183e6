"""Automatic windows: when they are made, how they are marked, and how many are kept.

Control thread. `mark` imports the standard library only, because the client's hooks use it.
"""
