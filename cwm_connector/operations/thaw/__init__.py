"""How windows come back: thaws and clones on request, and the windows that a request finds without a thaw.

Control thread. What reads the catalog runs on the catalog thread.
"""
