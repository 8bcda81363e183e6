"""The engine's passport as it runs: the canary completes it, and follows weights that are replaced in place.

Control thread, except what says otherwise.
"""
