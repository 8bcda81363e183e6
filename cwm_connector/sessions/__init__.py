"""Who speaks to the engine, and which windows a request may load.

Engine thread, but for titles, which has a thread of its own. Never blocks. Imports `core` only.
"""
