"""The scheduler side of one engine, from vLLM's configuration to the open control socket.

construction   engine thread: checks what vLLM is asked to serve, takes the lock of CWM_HOME, builds the parts
start          engine thread, once the workers are known: waits while the control thread recovers the home, opens
               the catalog and opens the socket
stop           engine thread: closes everything. Durability never depends on it.
"""

import asyncio
import hashlib
import logging
from array import array
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

from cwm_connector import compat
from cwm_connector.control.server import ControlServer
from cwm_connector.control.thread import ControlThread
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.folders import private_folder
from cwm_connector.core.identity import FORMAT_VERSION, Passport
from cwm_connector.operations.auto_freeze import policy as policies
from cwm_connector.operations.build import EngineShape, build_engine, start_operations
from cwm_connector.operations.dispatch import Dispatcher
from cwm_connector.operations.passport.canary import canary_tokens
from cwm_connector.operations.proof.first_tokens import FirstTokens
from cwm_connector.sessions.titles import Titler
from cwm_connector.settings import Settings
from cwm_connector.step.jobs import WorkerFacts
from cwm_connector.store.lock import HomeLock
from cwm_connector.version import __version__
from cwm_connector.weights_digest import files_digest

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger(__name__)

START_LIMIT_S: Final = 900.0
"""For the catalog, the recovery and the socket. The weights are read before, however long that takes."""


class EngineSide:
    """One for each engine. Construction and `start` raise CWMError: they stop an engine that could keep no window."""

    def __init__(self, vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig", settings: Settings) -> None:
        """Build the engine.

        Raises: `Code.ARGUMENT`, `Code.STATE`, `Code.WRITE_FAILED` or `Code.CORRUPT` if this engine can't keep windows.
        """
        compat.check_supported(vllm_config, kv_cache_config)
        policies.initial(settings)
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._settings = settings
        private_folder(settings.home, "CWM_HOME")
        private_folder(settings.chunks_path, "CWM_DISK_PATH")
        self._lock = HomeLock(settings.home)
        self._lock.acquire()
        self._core = compat.find_engine_core()
        self._first_tokens = None if self._core is None else FirstTokens(self._core)
        self._titler = Titler(lambda: compat.tokenizer(vllm_config))
        self._parts = build_engine(
            settings,
            EngineShape(
                model=vllm_config.model_config.served_model_name or vllm_config.model_config.model,
                block_tokens=compat.block_tokens(kv_cache_config),
                block_bytes=compat.block_bytes(kv_cache_config),
                hash_tokens=compat.hash_tokens(kv_cache_config),
                groups=compat.cache_groups(kv_cache_config),
                world_size=vllm_config.parallel_config.world_size,
                adapter_options=compat.adapter_options(vllm_config),
                canary_tokens=self._canary_tokens(),
            ),
            wake=self._wake,
            submit_prefill=self._submit_prefill,
            submit_proof=self._submit_proof,
            abort_request=self._abort_request,
            request_title=self._titler.request_title,
            is_paused=self._is_paused,
            record_span=compat.span_recorder(vllm_config),
        )
        self.scheduler = self._parts.scheduler
        if self._core is not None:
            compat.watch_worker_calls(self._core, self._parts.passports.suspect)
            compat.watch_adapter_loads(self._core, self._parts.adapters.loaded)
        self._control: ControlThread | None = None
        self._operations: Dispatcher | None = None
        self._shutdown_freezes: Future[None] | None = None
        self._background: list[asyncio.Task[None]] = []

    def start(self, facts: Sequence[WorkerFacts]) -> None:
        """Recover the home and open the socket. Returns when clients can call. Engine thread; blocks.

        vLLM 0.33 calls it again after each sleep. Nothing is left to do then.
        """
        if self._control is not None:
            self._parts.passports.suspect()
            return
        self._control = ControlThread()
        self._control.start()
        try:
            passport = self._passport(facts)  # reads the weights, as long as that takes
            self._control.submit(self._open(passport, facts)).result(START_LIMIT_S)
        except BaseException:
            self._control.stop()
            self._lock.release()
            raise

    def has_pending_work(self) -> bool:
        """Return True while the engine must go on stepping although no request runs. Engine thread; never waits.

        Operations wait for a step, or vLLM shuts down and freezes are still under way.
        """
        return self.scheduler.wants_step or self._is_finishing_freezes()

    def reset_cache(self) -> bool:
        """Unbind every thaw, because vLLM drops its caches. Windows stay and can be thawed again.

        Return False while a copy is under way, which vLLM must not pull the cache from under.
        """
        return self._parts.cache_dropped()

    def stop(self) -> None:
        """Close everything. Operations that wait for a step fail with `Code.ENGINE_UNREACHABLE`."""
        reason = CWMError(Code.ENGINE_UNREACHABLE, "the engine shut down; call again when it is back")
        self._parts.board.fail_all(reason)
        if self._control is not None:
            self._control.stop()
        self._titler.close()
        self._parts.close()
        self._lock.release()

    def _is_finishing_freezes(self) -> bool:
        if self._core is None or self._operations is None or self._control is None:
            return False
        if self._shutdown_freezes is None:
            if not compat.is_shutting_down(self._core):
                return False
            self._shutdown_freezes = self._control.submit(self._operations.finish_before_shutdown())
        return not self._shutdown_freezes.done()

    def _wake(self) -> None:
        if self._core is not None:
            compat.wake(self._core)

    def _canary_tokens(self) -> "array[int]":
        """Return the canary's tokens. None if the engine takes no requests of ours."""
        if self._core is None or not compat.takes_requests(self._core):
            return array("i")
        model, parts = self._vllm_config.model_config, self._kv_cache_config
        return canary_tokens(model.get_vocab_size(), compat.block_tokens(parts), model.max_model_len)

    async def _open(self, passport: Passport, facts: Sequence[WorkerFacts]) -> None:
        group_bytes = facts[0].group_bytes if facts else ()
        layouts = tuple(each.layout for each in sorted(facts, key=lambda each: each.rank))
        heads = compat.head_shape(self._vllm_config, self._kv_cache_config)
        engine = self._parts.open(passport, group_bytes, layouts, heads)
        operations = await start_operations(engine)
        server = ControlServer(self._settings.socket_path, operations, engine.model, __version__)
        await server.start()
        self._operations = operations
        tasks = (
            operations.tiering.run(),
            operations.auto.run(),
            operations.expire_sessions(),
            operations.trash.run(),
            operations.tier_probe.run(),
            operations.canary.run(),
        )
        self._background = [asyncio.create_task(task) for task in tasks]
        if engine.claims.shared:
            sync = self._parts.shared_catalog_sync
            self._background.append(asyncio.create_task(sync.run(engine, operations.tiering)))

    def _is_paused(self) -> bool:
        return self._core is not None and compat.is_paused(self._core)

    def _submit_prefill(
        self,
        request_id: str,
        token_ids: "memoryview[int]",
        cache_salt: str | None,
        lora_request: "LoRARequest | None",
    ) -> None:
        self.scheduler.copy_gate.require_awake()  # vLLM 0.33 refuses the request without a word to us
        if self._core is None:
            raise CWMError(Code.STATE, "this engine can't compute evicted blocks again; serve it with `cwm serve`")
        compat.submit_prefill(self._core, request_id, token_ids.tolist(), cache_salt, lora_request=lora_request)

    def _submit_proof(
        self,
        request_id: str,
        token_ids: "memoryview[int]",
        cache_salt: str | None,
        lora_request: "LoRARequest | None",
    ) -> "Future[compat.FirstToken]":
        if self._first_tokens is None:
            raise CWMError(Code.STATE, "this engine takes no requests of ours; serve it with `cwm serve`")
        return self._first_tokens.submit(request_id, token_ids.tolist(), cache_salt, lora_request)

    def _abort_request(self, request_id: str) -> None:
        if self._core is not None:
            compat.abort_request(self._core, request_id)

    def _passport(self, facts: Sequence[WorkerFacts]) -> Passport:
        files, source = compat.weight_files(self._vllm_config)
        digest = files_digest(files, self._settings.home / "weights.json") if files else source
        drafts, source = compat.drafter_weight_files(self._vllm_config)
        drafter = files_digest(drafts, self._settings.home / "drafter.json") if drafts else source
        layout = hashlib.sha256(b"".join(fact.layout for fact in sorted(facts, key=lambda fact: fact.rank)))
        fields = compat.passport_fields(
            self._vllm_config,
            self._kv_cache_config,
            weights=digest,
            drafter_weights=drafter,
            layout=layout.hexdigest(),
            backend="+".join(sorted({fact.attention_backend for fact in facts})),
            isa="+".join(sorted({fact.instruction_set for fact in facts})),
        )
        return Passport({**fields, "format": str(FORMAT_VERSION)})
