"""The records of windows, chunks, sessions and thaws.

Runs on the catalog thread of the engine. Offline commands open the catalog for reading. May block on the disk and on
Redis. Imports `redis`, `protocol`, `settings` and `core`.

Nothing is imported here, so that the MCP server, which needs the results alone, does not load a Redis client.
`base.Catalog` is the interface, `open.open_catalog` opens the one that the settings name, and
`sqlite.catalog.SqliteCatalog.open_read_only` is for clients.
"""
