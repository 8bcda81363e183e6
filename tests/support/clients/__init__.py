"""Real clients of LLMs, from npm, run without a terminal against the engine of a test."""
