"""Values that every part shares: error codes, names, keys, identity, units, fsync, folders.

Any thread. Nothing here blocks except `fsync` and `folders`. Imports the standard library only.
"""
