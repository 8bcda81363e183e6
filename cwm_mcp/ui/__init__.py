"""`cwm ui`: a read-only page on loopback that shows windows, sessions, tiers and health.

One thread with an event loop. Imports `api`, `settings` and, for the page's server, starlette and uvicorn.
"""
