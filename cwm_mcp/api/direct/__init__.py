"""Answers to one question of the shell, on the calling thread and without an event loop.

They may block. The shell imports this folder for lists and completion, so it must stay as light as msgspec and SQLite.
"""
