"""What every front end calls: the engine's client, the catalog without an engine, vLLM's own HTTP.

The event loop of its process. Blocking work goes to threads. Imports `settings`, and of cwm_connector `core`,
`protocol`, `catalog` and `settings`.
"""
