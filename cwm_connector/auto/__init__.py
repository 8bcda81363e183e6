"""Auto-freeze: windows that nobody asked for. `mark.py` tells them, `policy.py` says when, `freezer.py` does it."""
