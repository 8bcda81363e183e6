"""The work that CWM does in one vLLM step: match requests, send jobs to the workers, take in their reports.

Runs on the engine thread and never blocks. Imports `sessions`, `tiers.base`, `catalog.base`, `compat`, `metrics` and
`core`.
"""
