"""The engine as it runs: its loop, steps, blocks, requests, copies, tokenizer and counters.

Each section says on which threads its functions may run. Nothing here blocks, except `tokenizer`, which reads from the
disk.
"""

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import torch

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import BlockHash, KVCacheBlock
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)


# --- the engine loop; any thread, but `find_engine_core` -------------------------------------------------------------


def find_engine_core() -> "EngineCoreProc | None":
    """Return the engine whose constructor is creating the connector, or None if it is not on the stack.

    Call it from the connector's constructor. vLLM gives its connectors no way to wake an idle engine, but its own
    constructor is on the stack while the connector's runs.
    """
    from vllm.v1.engine.core import EngineCore

    frame = sys._getframe(1)
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, EngineCore):
            return candidate
        frame = frame.f_back  # type: ignore[assignment]
    return None


def wake(engine: "EngineCoreProc") -> None:
    """Make an idle engine look for work. Does nothing for an in-process engine, which has no input queue."""
    from vllm.v1.engine import EngineCoreRequestType

    inbox = getattr(engine, "input_queue", None)
    if inbox is not None:
        inbox.put_nowait((EngineCoreRequestType.WAKEUP, None))


def is_shutting_down(engine: "EngineCoreProc") -> bool:
    """Return whether a signal has asked the engine to shut down. It still makes steps while there is work."""
    from vllm.v1.engine.core import EngineShutdownState

    return getattr(engine, "shutdown_state", EngineShutdownState.RUNNING) is not EngineShutdownState.RUNNING


def submit_prefill(
    engine: "EngineCoreProc",
    request_id: str,
    token_ids: Sequence[int],
    cache_salt: str | None,
    *,
    lora_request: "LoRARequest | None" = None,
    logprobs: int | None = None,
) -> None:
    """Queue a request that computes `token_ids` and one more token. No client waits for its output.

    `lora_request`: the adapter that computes them. vLLM ends with an error if its files can't be loaded.
    `logprobs`: how many alternatives to the token vLLM's output names besides the token's own logprob.
    Raises `Code.STATE` for an in-process engine, which has no queue for the request.
    """
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType

    inbox = getattr(engine, "input_queue", None)
    if inbox is None:
        raise CWMError(Code.STATE, "this engine runs inside its caller and can't recompute; serve it with `cwm serve`")
    request = EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=list(token_ids),
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=1, temperature=0.0, logprobs=logprobs),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=lora_request,
        cache_salt=cache_salt,
        data_parallel_rank=None,
    )
    inbox.put_nowait((EngineCoreRequestType.ADD, engine.preprocess_add_request(request)))


def abort_request(engine: "EngineCoreProc", request_id: str) -> None:
    """Have the engine end a request, also one that it has not begun yet. Nothing happens if it is over."""
    from vllm.v1.engine import EngineCoreRequestType

    inbox = getattr(engine, "input_queue", None)
    if inbox is not None:
        inbox.put_nowait((EngineCoreRequestType.ABORT, [request_id]))


def takes_requests(engine: "EngineCoreProc") -> bool:
    """Return whether requests of ours can be queued. An in-process engine has no queue."""
    return hasattr(engine, "input_queue")


def watch_worker_calls(engine: "EngineCoreProc", called: Callable[[], None]) -> None:
    """Have `called` called after each call that a client has the workers carry out.

    Weights are replaced in place by such calls, whatever their names are, and vLLM tells no connector about it.
    """
    call_workers = engine.collective_rpc

    @functools.wraps(call_workers)  # vLLM counts a client's arguments by the method's signature
    def call_and_tell(*args: Any, **kwargs: Any) -> Any:
        try:
            return call_workers(*args, **kwargs)
        finally:
            called()

    engine.collective_rpc = call_and_tell


# --- steps; engine thread only ---------------------------------------------------------------------------------------


def middle_of_step(step: "SchedulerOutput") -> int:
    """Return the mean position, in their prompts, of the tokens that the step computes."""
    cached = step.scheduled_cached_reqs
    begins = [(each.req_id, each.num_computed_tokens) for each in step.scheduled_new_reqs]
    begins += zip(cached.req_ids, cached.num_computed_tokens, strict=True)
    tokens = step.num_scheduled_tokens
    total = sum(tokens[request_id] * (begin + tokens[request_id] / 2) for request_id, begin in begins)
    return int(total / (step.total_num_scheduled_tokens or 1))


def is_paused(engine: "EngineCoreProc") -> bool:
    """Return whether the engine sleeps or was paused, so that it begins no request."""
    return engine.is_sleeping()


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A greedy token and its logprob."""

    token_id: int = field(repr=False)
    logprob: float


def watch_first_tokens(engine: "EngineCoreProc", answers: "Mapping[str, Future[FirstToken]]") -> None:
    """Answer the futures in `answers`, by request id, with each request's first token. Call it once for an engine.

    vLLM gives a logprob to the request's client alone, so this looks at what the engine thread puts into its output
    queue. All of it goes on, and the API server ignores answers to requests that it does not know. A future fails with
    `Code.STATE` if its request ends without a token.
    """
    outbox = getattr(engine, "output_queue", None)
    if outbox is None:
        return  # an in-process engine takes no request of ours either
    put = outbox.put_nowait

    def put_and_look(message: Any) -> None:
        put(message)
        if not answers or not isinstance(message, tuple):
            return
        try:
            for output in message[1].outputs:
                answer = answers.get(output.request_id)
                if answer is not None and answer.set_running_or_notify_cancel():
                    _complete(answer, output)
        except Exception:
            logger.exception("an output of the engine could not be read")

    outbox.put_nowait = put_and_look


def _complete(answer: "Future[FirstToken]", output: "EngineCoreOutput") -> None:
    if output.new_token_ids and output.new_logprobs is not None:
        answer.set_result(FirstToken(output.new_token_ids[0], float(output.new_logprobs.logprobs[0][0])))
    else:
        answer.set_exception(CWMError(Code.STATE, "the engine ended the request without a token; try again"))


# --- blocks; engine thread only --------------------------------------------------------------------------------------


def cached_blocks(pool: "BlockPool", hashes: Sequence[bytes], group: int = 0) -> "list[KVCacheBlock | None]":
    """Return for each hash the block that the prefix cache holds in a KV cache group, or None."""
    found = (pool.get_cached_block(cast("BlockHash", block_hash), [group]) for block_hash in hashes)
    return [blocks[0] if blocks else None for blocks in found]


def pin_blocks(pool: "BlockPool", blocks: "Sequence[KVCacheBlock]") -> None:
    """Keep vLLM from reusing the blocks until `unpin_blocks`."""
    pool.touch(blocks)


def unpin_blocks(pool: "BlockPool", blocks: "Sequence[KVCacheBlock]") -> None:
    """Allow vLLM to reuse the blocks. The end of a sequence is evicted before its beginning."""
    pool.free_blocks(reversed(blocks))


def is_held_once(block: "KVCacheBlock") -> bool:
    """Return whether unpinning the block would give it back to vLLM."""
    return block.ref_cnt == 1


_WALKED_AT_ONCE: Final = 256
"""Free blocks. It takes about 20 microseconds."""


def next_evicted(pool: "BlockPool", count: int) -> Iterator[list[int]]:
    """Yield the ids of the `count` free blocks that vLLM will reuse next, which loses their content, some at a time.

    vLLM may use and free blocks meanwhile. If it has taken the next one, the walk begins again at the front of its
    queue, and in all it passes `count` blocks.
    """
    queue = pool.free_block_queue
    block = queue.fake_free_list_head.next_free_block
    while count > 0 and block is not None and block is not queue.fake_free_list_tail:
        found: list[int] = []
        while len(found) < min(_WALKED_AT_ONCE, count) and block is not queue.fake_free_list_tail:
            found.append(block.block_id)
            block = block.next_free_block
        count -= len(found)
        yield found
        if block.next_free_block is None and block is not queue.fake_free_list_tail:
            block = queue.fake_free_list_head.next_free_block


# --- requests; engine thread only ------------------------------------------------------------------------------------


def answers_by_schema(request: "Request") -> bool:
    """Return whether the request's answer must be JSON."""
    params = getattr(request, "sampling_params", None)  # None for a pooling request
    outputs = None if params is None else params.structured_outputs
    return outputs is not None and bool(outputs.json is not None or outputs.json_object)


def streams_its_answer(request: "Request") -> bool:
    """Return whether the client reads the answer while it is computed."""
    from vllm.sampling_params import RequestOutputKind

    params = getattr(request, "sampling_params", None)
    return params is None or params.output_kind is not RequestOutputKind.FINAL_ONLY


# --- copies between memory and a CUDA device; transfer threads -------------------------------------------------------


def queue_copies(sources: torch.Tensor, targets: torch.Tensor, sizes: torch.Tensor, *, from_host: bool) -> None:
    """Queue copies of `sizes[i]` bytes from address `sources[i]` to `targets[i]` on the current CUDA stream.

    The three are int64 tensors in host memory. One call of the driver takes all copies and needs no kernel, so they
    leave the device's processors to the model. `from_host`: the driver may read the sources early, which nothing on the
    device writes.
    """
    from vllm import _custom_ops

    _custom_ops.swap_blocks_batch(sources, targets, sizes, is_src_access_order_any=from_host)


# --- text; any thread but the engine's -------------------------------------------------------------------------------


def tokenizer(vllm_config: "VllmConfig") -> Any:
    """Return the model's tokenizer, or None if vLLM was started without one. The first call loads it, for seconds."""
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(vllm_config.model_config)


# --- counters --------------------------------------------------------------------------------------------------------


def hit_sources(tokens_by_tier: Mapping[TierName, int]) -> "dict[CacheHitSource, int]":
    """Return the tokens by the labels of vLLM's own hit counters."""
    from vllm.v1.metrics.cache_hit_source import CacheHitSource

    labels = {TierName.CPU: CacheHitSource.HOST, TierName.DISK: CacheHitSource.DISK}
    return {labels.get(tier, CacheHitSource.EXTERNAL_UNSPECIFIED): count for tier, count in tokens_by_tier.items()}
