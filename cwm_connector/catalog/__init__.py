"""What is recorded of windows, chunks, sessions and thaws.

Catalog thread in the engine; offline commands open it for reading. May block on the disk and on Redis. Imports
`redis`, `protocol`, `settings` and `core`.
"""
