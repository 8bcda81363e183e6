"""CWM_HOME: which engine owns it, and which chunk folder belongs to it.

Any process of an engine, at its start. May block on the disk. Imports `core` only.
"""
