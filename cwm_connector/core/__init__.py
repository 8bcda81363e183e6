"""Values that every other folder shares: error codes, names, keys, units, identity, fsync and folders.

Any thread may use them. Only `fsync` and `folders` may block, on the disk. Imports the standard library only.
"""
