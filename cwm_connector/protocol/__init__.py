"""What the engine and its clients agree on: the calls, their results and the frames that carry them.

Any thread of either process. Nothing here blocks. Imports `core` only, and never torch, vllm or lmcache.
"""
