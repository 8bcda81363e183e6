"""Where sealed chunks are kept: CPU memory, and a folder for each durable tier.

Transfer threads, and the control thread's helpers for what needs no worker. May block. Imports `redis`, `store`,
`settings` and `core`.
"""
