"""All uses of vLLM internals, which are not part of its public connector API. Run with vLLM 0.32.

Where 0.31 and 0.33 differ by their source, both ways are here, and the tests imitate the other one.

tests/cwm_connector/test_compat.py has a contract test for each function. When vLLM changes, those tests fail first.
Callers import the package and say `compat.wake(…)`.
"""

from cwm_connector.compat.extras import (
    ADAPTER_CONFIG,
    ADAPTER_SUFFIXES,
    adapter_folder,
    adapter_options,
    embeds_of,
    is_plain,
    media_of,
    watch_adapter_loads,
)
from cwm_connector.compat.groups import CachedBoundary, cache_groups, cached_boundary, group_facts, hash_tokens
from cwm_connector.compat.model import (
    attention_backend,
    block_bytes,
    block_tokens,
    check_supported,
    instruction_set,
    layers_in_order,
    passport_fields,
    weight_files,
)
from cwm_connector.compat.running import (
    FirstToken,
    abort_request,
    answers_by_schema,
    cached_blocks,
    find_engine_core,
    hit_sources,
    is_held_once,
    is_paused,
    is_shutting_down,
    middle_of_step,
    next_evicted,
    pin_blocks,
    queue_copies,
    streams_its_answer,
    submit_prefill,
    takes_requests,
    tokenizer,
    unpin_blocks,
    wake,
    watch_first_tokens,
    watch_worker_calls,
)
from cwm_connector.compat.tracing import span_recorder

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_SUFFIXES",
    "CachedBoundary",
    "FirstToken",
    "abort_request",
    "adapter_folder",
    "adapter_options",
    "answers_by_schema",
    "attention_backend",
    "block_bytes",
    "block_tokens",
    "cache_groups",
    "cached_blocks",
    "cached_boundary",
    "check_supported",
    "embeds_of",
    "find_engine_core",
    "group_facts",
    "hash_tokens",
    "hit_sources",
    "instruction_set",
    "is_held_once",
    "is_paused",
    "is_plain",
    "is_shutting_down",
    "layers_in_order",
    "media_of",
    "middle_of_step",
    "next_evicted",
    "passport_fields",
    "pin_blocks",
    "queue_copies",
    "span_recorder",
    "streams_its_answer",
    "submit_prefill",
    "takes_requests",
    "tokenizer",
    "unpin_blocks",
    "wake",
    "watch_adapter_loads",
    "watch_first_tokens",
    "watch_worker_calls",
    "weight_files",
]
