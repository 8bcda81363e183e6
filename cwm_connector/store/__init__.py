"""CWM_HOME: the engine that owns it, and the chunk folder that belongs to it.

Any process of an engine, at its start. May block on the disk. Imports `core` only.
"""
