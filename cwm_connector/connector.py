"""The connector that vLLM loads: every hook in a line or two, handed on to the scheduler side or the worker side.

vLLM makes one object in the scheduler's process and one in each worker's. It calls the hooks while it serves, so they
keep to three rules:

    raise      never: `hook` logs an exception and answers what leaves the request to vLLM
    block      never: no hook waits for I/O, for another thread or for a lock that is held during I/O
    except     at the start and the end: the constructor, `register_kv_caches` and
               `set_xfer_handshake_metadata_pp_aware` may raise and block, because an engine that can't keep windows
               must not serve as if it could. `shutdown` waits for threads to end.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from cwm_connector import compat, logs
from cwm_connector.core.errors import CWMError
from cwm_connector.interpreter_lock import take_turns
from cwm_connector.service import EngineSide
from cwm_connector.settings import load_settings
from cwm_connector.step.jobs import StepJobs, StepReports, WorkerFacts
from cwm_connector.step.prefill_speed import PREFILL_TOKENS
from cwm_connector.worker.build import build_worker
from cwm_connector.worker.group_copy import grouped_copier
from cwm_connector.worker.paged_copy import PagedCopier, copier_for
from cwm_connector.worker.worker import WorkerSide

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def hook(otherwise: Callable[[], Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a hook answer `otherwise()` instead of raising. An exception in a hook would end the engine."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(*args, **kwargs)
            except Exception:
                logger.exception("%s failed; vLLM goes on without it", method.__name__)
                return otherwise()

        return guarded

    return decorate


def _nothing() -> None:
    return None


class CWMConnector(KVConnectorBase_V1, SupportsHMA):
    """Loaded by `vllm serve --kv-transfer-config`. One object for each role and process."""

    _is_resumed_at_boundaries = False
    """True for a model with other attention than full attention. Its loads are of use as a whole or not at all."""

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._settings = load_settings(self._kv_transfer_config.kv_connector_extra_config)
        logs.configure(self._settings.log_level)
        self._service: EngineSide | None = None
        self._worker: WorkerSide | None = None
        self._facts: WorkerFacts | None = None
        if role is KVConnectorRole.SCHEDULER:
            try:
                self._service = EngineSide(vllm_config, kv_cache_config, self._settings)
            except CWMError as problem:
                logger.error("%s", problem)  # the one clear line before vLLM's own traceback
                raise

    @property
    def requires_kv_delivery(self) -> bool:
        """Return False: a failed freeze is tried again and never keeps a request from finishing."""
        return False

    # --- worker side: the model's thread, in each worker process ---
    #
    # register_kv_caches comes once, after the model is loaded and before any request. For each step vLLM calls
    # wait_for_save once the forward is on the current stream, so that jobs handed over there see the KV of this step.
    # get_finished, get_block_ids_with_load_errors and build_connector_worker_meta then collect what is done by now.

    def register_kv_caches(self, kv_caches: Mapping[str, torch.Tensor]) -> None:
        """Open the home for this rank. Blocks on the disk. Raises: CWMError, which stops the start."""
        parallel = self._vllm_config.parallel_config
        groups = compat.layers_in_order(self._kv_cache_config, kv_caches)
        first = groups[0][0]
        copier: PagedCopier
        if compat.cache_groups(self._kv_cache_config):
            self._is_resumed_at_boundaries = True
            copier = grouped_copier(groups, compat.group_facts(self._kv_cache_config))
        else:
            copier = copier_for(groups[0])
        self._facts = WorkerFacts(
            rank=parallel.rank,
            layout=copier.layout,
            group_bytes=copier.group_bytes,
            attention_backend=compat.attention_backend(self._vllm_config, self._kv_cache_config),
            instruction_set=compat.instruction_set(),
        )
        parts = build_worker(
            self._settings,
            copier,
            rank=parallel.rank,
            world_size=parallel.world_size,
            block_tokens=compat.block_tokens(self._kv_cache_config),
            numbers=compat.page_numbers(self._kv_cache_config, groups),
        )
        if first.is_cuda:
            parts.cpu.ready()  # vLLM captures its graphs next, and page-locking memory meanwhile can break that
        self._worker = parts.side

    def unregister_kv_caches(self, *_: Any) -> None:
        """Do nothing before a sleep. No copy is under way then, because `reset_cache` came first. vLLM 0.33."""

    def restore_kv_caches(self, *_: Any) -> None:
        """Do nothing after a sleep. vLLM maps its cache where it was, so our views of it are right. vLLM 0.33."""

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """Return this rank's facts, which vLLM carries to the scheduler's process."""
        return self._facts

    @hook(_nothing)
    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """Do nothing: loads are asynchronous and are handed over after the forward, in `wait_for_save`."""

    @hook(_nothing)
    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: no request runs before its load is over."""

    @hook(_nothing)
    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Do nothing: a freeze copies whole blocks after they are computed."""

    @hook(_nothing)
    def wait_for_save(self) -> None:
        """Hand the step's jobs to the transfer threads. Returns at once."""
        metadata = self._get_connector_metadata()
        if not isinstance(metadata, StepJobs):
            return
        take_turns(short=not metadata.computes)
        if self._worker is not None:
            self._worker.submit(metadata.jobs)

    @hook(lambda: (None, None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Return the requests whose loads are over, with or without success."""
        return None, self._worker.take_loaded() if self._worker else None

    @hook(KVConnectorTransferResults)
    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Return the requests whose loads are over, and which of them have failed as a whole.

        None fails as a whole in a model with full attention alone: vLLM keeps what comes before the first bad block.
        """
        if self._worker is None or not self._is_resumed_at_boundaries:
            return super().get_transfer_results(finished_req_ids)
        loaded, failed = self._worker.take_loads()
        return KVConnectorTransferResults(finished_recving=loaded, failed_recving=failed)

    @hook(set)
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks that could not be loaded. vLLM computes them instead.

        vLLM ends with an error if it is told of such blocks in a model with several KV cache groups.
        """
        bad = self._worker.take_bad_blocks() if self._worker else set()
        return set() if self._is_resumed_at_boundaries else bad

    @hook(_nothing)
    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """Return this rank's reports since the last step, which vLLM carries to `update_connector_output`."""
        return self._worker.take_reports() if self._worker else None

    # --- scheduler side: the engine thread, in the engine's process ---
    #
    # set_xfer_handshake_metadata_pp_aware comes once, when all workers are ready and before any request. In vLLM 0.33
    # it comes again after each sleep. For each step vLLM calls get_num_new_matched_tokens and update_state_after_alloc
    # for the requests that it starts, build_connector_meta once the step is planned, and update_connector_output with
    # the workers' reports once it is computed. No two hooks run at the same time, so the scheduler side needs no locks.

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Recover the home and open the control socket. Blocks. Raises: CWMError, which stops the start."""
        assert self._service is not None
        self._service.start([facts for facts in metadata.values() if isinstance(facts, WorkerFacts)])

    @hook(_nothing)
    def bind_gpu_block_pool(self, gpu_block_pool: "BlockPool") -> None:
        """Keep vLLM's block pool, from which freezes read and in which they pin blocks."""
        assert self._service is not None
        self._service.scheduler.bind_pool(gpu_block_pool)

    @hook(_nothing)
    def bind_kv_cache_manager(self, kv_cache_manager: "KVCacheManager") -> None:
        """Keep what finds the longest prefix that vLLM's cache has in every KV cache group, and the block pool."""
        super().bind_kv_cache_manager(kv_cache_manager)
        assert self._service is not None
        self._service.scheduler.bind_coordinator(kv_cache_manager.coordinator)

    @hook(_nothing)
    def on_new_request(self, request: "Request") -> None:
        """Take down a request's session and head."""
        assert self._service is not None
        self._service.scheduler.request_added(request)

    @hook(lambda: (0, False))
    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        """Return how many tokens beyond the computed ones can be loaded, and whether the load is asynchronous.

        None in place of the number makes vLLM ask again in its next step.
        """
        assert self._service is not None
        tokens = self._service.scheduler.matched_tokens(request, num_computed_tokens)
        return tokens, bool(tokens)

    @hook(_nothing)
    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        """Post the load into the blocks that vLLM has allocated for it."""
        assert self._service is not None
        self._service.scheduler.blocks_allocated(request, blocks, num_external_tokens)

    @hook(dict)
    def get_external_cache_hit_sources(
        self, request: "Request", num_external_tokens: int
    ) -> "dict[CacheHitSource, int]":
        """Return from which tiers a request's tokens are loaded, for vLLM's metrics."""
        assert self._service is not None
        return compat.hit_sources(self._service.scheduler.hit_sources(request))

    @hook(StepJobs)
    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        """Run the calls queued by other threads, then return this step's jobs for the workers."""
        assert self._service is not None
        tokens = scheduler_output.total_num_scheduled_tokens
        position = compat.middle_of_step(scheduler_output) if tokens >= PREFILL_TOKENS else 0
        jobs = self._service.scheduler.step_jobs(tokens, position)
        take_turns(short=not jobs.computes)  # the workers may have processes of their own, and do the same there
        return jobs

    @hook(_nothing)
    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        """Deliver the workers' reports to the operations that wait for them."""
        if self._service is None:
            return
        self._service.scheduler.prefill_speed.step_done()
        reports = connector_output.kv_connector_worker_meta
        if isinstance(reports, StepReports):
            self._service.scheduler.deliver(reports)

    @hook(lambda: (False, None))
    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Take down the session's tokens. vLLM may reuse the blocks at once."""
        return self.request_finished_all_groups(request, (block_ids,))

    @hook(lambda: (False, None))
    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Take down the session's tokens. vLLM may reuse the blocks of every group at once."""
        assert self._service is not None
        self._service.scheduler.request_finished(request)
        return False, None

    @hook(lambda: False)
    def has_pending_block_frees(self) -> bool:
        """Return True if vLLM gets blocks back soon, so that it waits a step rather than preempt a request."""
        return self._service is not None and self._service.scheduler.frees_blocks_soon()

    @hook(lambda: False)
    def has_pending_push_work(self) -> bool:
        """Return True while the engine must step although no request runs. See EngineSide.has_pending_work."""
        return self._service is not None and self._service.has_pending_work()

    @hook(lambda: True)
    def reset_cache(self) -> bool | None:
        """Unbind every thaw, because vLLM drops its caches. Return False while a copy is under way."""
        assert self._service is not None
        return self._service.reset_cache()

    @hook(_nothing)
    def shutdown(self) -> None:
        """Close this side. Durability never depends on it."""
        if self._service is not None:
            self._service.stop()
        if self._worker is not None:
            self._worker.close()
