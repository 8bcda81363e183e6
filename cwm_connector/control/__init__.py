"""The control socket: its server, the clients' connections, and the thread that serves them.

Control thread. Never blocks its event loop. Imports `protocol` and `core`.
"""
