"""The control socket: its server, the clients' connections, the thread that serves them and its helpers.

Control thread. Never blocks its event loop. Imports `protocol` and `core`.
"""
