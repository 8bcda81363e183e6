"""The one way to talk to Redis: connections, errors, and what a server has to promise.

Transfer threads and the catalog thread. Every call may block for its time-out. Imports `core` only.
"""
