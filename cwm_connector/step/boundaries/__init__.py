"""Models with several KV cache groups, resumed at boundaries alone: what is saved of them, and what is loaded.

Engine thread. Nothing here blocks.
"""
