"""What CWM does within one vLLM step: matches, jobs for the workers, and their reports.

Engine thread. Never blocks. Imports `sessions`, `tiers.base`, `catalog.base`, `compat`, `metrics` and `core`.
"""
