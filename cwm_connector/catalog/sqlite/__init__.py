"""The catalog in one SQLite file, as the default catalog of an engine or as its replica of a shared one.

Catalog thread, or the thread of a client that opened it for reading. Blocks on the disk. Imports `catalog.base` and
`core` only. `catalog.SqliteCatalog` is the face. The other modules are parts of it.
"""
