"""Values that every part shares: error codes, names, keys, identity, fsync.

Any thread. Nothing here blocks except `fsync`. Imports the standard library only.
"""
