"""Figures of this machine: each module is run with `python -m benchmarks.<name>` and writes to build/bench/."""
