"""The control socket: who may call, the connections, and the thread that serves them.

Control thread. Never blocks its event loop. Imports `protocol` and `core`.
"""
