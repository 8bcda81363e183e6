"""A catalog that several engines share: a log of changes in Redis, and a SQLite replica in each engine.

Catalog thread, except for checkpoints, which have a thread of their own. Blocks on Redis and on the disk. Imports
`catalog.sqlite`, `redis` and `core`. `catalog.RedisCatalog` is the face. The other modules are parts of it.
"""
