"""Puts the scheduler side's parts together: checks at construction, the control thread once the workers are known."""

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

from cwm_connector import compat
from cwm_connector.catalog.open import open_catalog
from cwm_connector.catalog.thread import CatalogThread
from cwm_connector.control.server import ControlServer
from cwm_connector.control.thread import ControlThread
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.folders import private_folder
from cwm_connector.core.identity import FORMAT_VERSION, Geometry, Passport
from cwm_connector.core.types import now_micros
from cwm_connector.metrics import Metrics
from cwm_connector.operations.auto_freeze import policy as policies
from cwm_connector.operations.claims import Claims
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.dispatch import Dispatcher
from cwm_connector.operations.recovery import recover
from cwm_connector.operations.shared_catalog_sync import SharedCatalogSync
from cwm_connector.sessions.index import SessionIndex
from cwm_connector.sessions.thaw_bindings import ThawBindings
from cwm_connector.sessions.titles import Titler
from cwm_connector.settings import CatalogKind, Settings
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.step.job_board import JobBoard
from cwm_connector.step.jobs import WorkerFacts
from cwm_connector.step.scheduler import SchedulerSide
from cwm_connector.step.step_queue import StepQueue
from cwm_connector.store.lock import HomeLock
from cwm_connector.store.pairing import pair_store, require_catalog
from cwm_connector.tiers.open import open_tiers
from cwm_connector.version import __version__
from cwm_connector.weights_digest import files_digest

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger(__name__)

START_LIMIT_S: Final = 900.0
"""Hashing the weights of a large model, once, takes longest."""


class EngineSide:
    """One for each engine. Construction and `start` raise CWMError: they stop an engine that could keep no window."""

    def __init__(self, vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig", settings: Settings) -> None:
        compat.check_supported(vllm_config, kv_cache_config)
        policies.initial(settings)
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._settings = settings
        private_folder(settings.home, "CWM_HOME")
        private_folder(settings.chunks_path, "CWM_DISK_PATH")
        self._lock = HomeLock(settings.home)
        self._lock.acquire()
        store_id = pair_store(settings.home, settings.chunks_path)
        require_catalog(settings.catalog_path, settings.chunks_path)
        self._durable_tiers = open_tiers(settings, store_id)
        self._claims = Claims(store_id, settings.catalog is CatalogKind.REDIS, now_micros())
        self._world_size = vllm_config.parallel_config.world_size
        self._model = vllm_config.model_config.served_model_name or vllm_config.model_config.model
        self._core = compat.find_engine_core()
        self._geometry = Geometry.of(compat.block_tokens(kv_cache_config), settings.chunk_tokens)
        self._thaw_bindings = ThawBindings()
        self._titler = Titler(lambda: compat.tokenizer(vllm_config))
        self._board = JobBoard(self._world_size)
        self._step_queue = StepQueue(self._wake)
        self._locations = ChunkLocations(self._world_size)
        self._metrics = Metrics()
        self._control: ControlThread | None = None
        self._follower = SharedCatalogSync()
        self._operations: Dispatcher | None = None
        self._farewell: Future[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self.scheduler = SchedulerSide(
            self._geometry,
            SessionIndex(
                self._model,
                self._geometry.block_tokens,
                self._thaw_bindings.thawed_into,
                self._titler.request_title,
                continued=self._thaw_bindings.continued_by,
            ),
            self._thaw_bindings,
            self._board,
            self._step_queue,
            self._locations,
            self._metrics,
        )

    def start(self, facts: Sequence[WorkerFacts]) -> None:
        """Recovers the store and opens the socket; returns when clients can call."""
        self._control = ControlThread()
        self._control.start()
        try:
            self._control.submit(self._open(facts)).result(START_LIMIT_S)
        except BaseException:
            self._control.stop()
            self._lock.release()
            raise

    def still_at_work(self) -> bool:
        """True while the engine must go on stepping: somebody waits for a step, or, once vLLM shuts down and all
        requests are over, sessions are frozen before it ends. EngineContext thread; never waits."""
        return self.scheduler.wants_step or self._saying_farewell()

    def _saying_farewell(self) -> bool:
        if self._core is None or self._operations is None or self._control is None:
            return False
        if self._farewell is None:
            if not compat.is_shutting_down(self._core):
                return False
            self._farewell = self._control.submit(self._operations.auto.before_shutdown())
        return not self._farewell.done()

    def forget_thaws(self) -> None:
        """After vLLM dropped its caches on somebody's order: what is stored stays, but must be thawed anew."""
        self._thaw_bindings.clear()

    def stop(self) -> None:
        """Best effort: durability never depends on it."""
        self._board.fail_all(CWMError(Code.ENGINE_UNREACHABLE, "the engine shut down; call again when it is back"))
        if self._control is not None:
            self._control.stop()
        self._titler.close()
        for store in self._durable_tiers:
            store.close()
        self._lock.release()

    def _wake(self) -> None:
        if self._core is not None:
            compat.wake(self._core)

    async def _open(self, facts: Sequence[WorkerFacts]) -> None:
        passport = await asyncio.to_thread(self._passport, facts)
        catalog = CatalogThread(lambda: open_catalog(self._settings, self._claims.engine_id, self._follower.note_gone))
        recovered = await catalog.run(lambda catalog: recover(catalog, self._durable_tiers, self._claims))
        logger.info(
            "store %s: swept %d leftovers and %d orphans; %d chunks are damaged",
            self._settings.home,
            recovered.leftovers,
            recovered.orphans,
            recovered.damaged,
        )
        engine = EngineContext(
            settings=self._settings,
            model=self._model,
            passport=passport,
            geometry=self._geometry,
            block_bytes=compat.block_bytes(self._kv_cache_config),
            world_size=self._world_size,
            catalog=catalog,
            scheduler=self.scheduler,
            step_queue=self._step_queue,
            board=self._board,
            locations=self._locations,
            thaw_bindings=self._thaw_bindings,
            metrics=self._metrics,
            submit_prefill=self._submit_prefill,
            durable_tiers={store.name: store for store in self._durable_tiers},
            claims=self._claims,
        )
        operations = Dispatcher(engine)
        await operations.prepare()
        server = ControlServer(self._settings.socket_path, operations, self._model, __version__)
        await server.start()
        self._operations = operations
        self._background = [asyncio.create_task(operations.tiering.run()), asyncio.create_task(operations.auto.run())]
        if self._claims.shared:
            self._background.append(asyncio.create_task(self._follower.run(engine, operations.tiering)))

    def _submit_prefill(self, request_id: str, token_ids: "memoryview[int]", cache_salt: str | None) -> None:
        if self._core is None:
            raise CWMError(Code.STATE, "this engine can't compute evicted blocks again; serve it with `cwm serve`")
        compat.submit_prefill(self._core, request_id, token_ids.tolist(), cache_salt)

    def _passport(self, facts: Sequence[WorkerFacts]) -> Passport:
        files, source = compat.weight_files(self._vllm_config)
        digest = files_digest(files, self._settings.home / "weights.json") if files else source
        layout = hashlib.sha256(b"".join(fact.layout for fact in sorted(facts, key=lambda fact: fact.rank)))
        fields = compat.passport_fields(
            self._vllm_config,
            self._kv_cache_config,
            digest,
            layout.hexdigest(),
            "+".join(sorted({fact.attention_backend for fact in facts})),
            "+".join(sorted({fact.instruction_set for fact in facts})),
        )
        return Passport({**fields, "format": str(FORMAT_VERSION)})
