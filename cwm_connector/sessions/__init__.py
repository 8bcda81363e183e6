"""Which session a request belongs to, and which windows it may load.

Runs on the engine thread and never blocks, except `titles`, which has a thread of its own. Imports `core` only.
"""
