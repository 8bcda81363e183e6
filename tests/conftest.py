"""For every test: no example of Hypothesis fails for being slow, which on a loaded machine says nothing of the code."""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
