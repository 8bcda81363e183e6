"""Measurements of this machine. Run a module with `python -m benchmarks.NAME`. ttft writes to build/bench/."""
