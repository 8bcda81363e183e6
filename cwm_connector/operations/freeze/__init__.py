"""Freezes: how one is carried out, and what is known of those that are under way or have failed.

Control thread. Nothing here blocks its event loop.
"""
