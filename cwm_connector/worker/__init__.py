"""One rank's side: copies between the paged KV cache and chunks, and all I/O on the tiers.

vLLM's hooks hand jobs over on the model's thread and never block. Transfer threads do the rest and may block.
Imports `step.jobs`, `tiers`, `store` and `core`.
"""
