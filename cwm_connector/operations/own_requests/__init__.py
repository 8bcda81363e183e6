"""Requests of our own: what freezes and the canary have the engine compute, and how they are given up.

Control thread. Nothing here blocks its event loop.
"""
