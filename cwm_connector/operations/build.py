"""Builds the scheduler side of an engine from its settings: every part once, wired in one place.

    build_engine       before the workers are known: the home and what vLLM's scheduler hooks use. Any thread.
    EngineParts.open   once the passport is known: the catalog and what the operations use. Control thread.
    start_operations   the check of the home and the state of before the last stop. Control thread.

vLLM's process and the engine of the tests are both built here. Whoever builds an engine for a home that another process
may use holds its HomeLock.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cwm_connector.catalog.open import open_catalog
from cwm_connector.catalog.thread import CatalogThread
from cwm_connector.core.groups import CacheGroup, HeadShape
from cwm_connector.core.identity import Geometry, Passport
from cwm_connector.core.types import now_micros
from cwm_connector.metrics import Metrics
from cwm_connector.operations.claims import Claims
from cwm_connector.operations.context import AbortRequest, EngineContext, SubmitPrefill, SubmitProof
from cwm_connector.operations.dispatch import Dispatcher
from cwm_connector.operations.observation.observer import Observer, RecordSpan
from cwm_connector.operations.passport.current import CurrentPassport
from cwm_connector.operations.shared_catalog_sync import SharedCatalogSync
from cwm_connector.sessions.extras.adapters import Adapters
from cwm_connector.sessions.extras.carried import RequestExtras
from cwm_connector.sessions.heads import RequestTitle
from cwm_connector.sessions.index import SessionIndex
from cwm_connector.sessions.thaw_bindings import ThawBindings
from cwm_connector.settings import CatalogKind, Settings
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.step.job_board import CopyGate, JobBoard
from cwm_connector.step.scheduler import SchedulerSide
from cwm_connector.step.step_queue import StepQueue
from cwm_connector.step.window_matches import WindowMatches
from cwm_connector.store.pairing import open_home, require_catalog
from cwm_connector.tiers.base import DurableTier
from cwm_connector.tiers.open import open_tiers


@dataclass(frozen=True, slots=True)
class EngineShape:
    """The engine as vLLM's configuration describes it."""

    model: str
    block_tokens: int
    block_bytes: int
    """One block over all layers, on one rank."""
    world_size: int
    hash_tokens: int = 0
    """Tokens that each of a request's block hashes covers. 0: those of a block."""
    adapter_options: str = ""
    """The options that decide what an adapter computes."""
    canary_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    """None for an engine that takes no requests of ours, which has no canary then."""
    groups: tuple[CacheGroup, ...] = ()
    """See `Geometry.groups`."""

    @property
    def hash_unit(self) -> int:
        """Return the tokens that each of a request's block hashes covers."""
        return self.hash_tokens or self.block_tokens


@dataclass(frozen=True, slots=True)
class EngineParts:
    """The parts of one engine that live from its construction to its end."""

    settings: Settings
    shape: EngineShape
    geometry: Geometry
    scheduler: SchedulerSide
    step_queue: StepQueue
    board: JobBoard
    locations: ChunkLocations
    thaw_bindings: ThawBindings
    adapters: Adapters
    metrics: Metrics
    observer: Observer
    submit_prefill: SubmitPrefill
    submit_proof: SubmitProof
    abort_request: AbortRequest
    durable_tiers: Sequence[DurableTier]
    """As this process sees them, fastest first. The workers open their own."""
    claims: Claims
    passports: CurrentPassport
    shared_catalog_sync: SharedCatalogSync

    def open(
        self,
        passport: Passport,
        group_bytes: tuple[int, ...] = (),
        rank_layouts: tuple[bytes, ...] = (),
        heads: HeadShape | str = "it is not known how its heads lie in memory",
    ) -> EngineContext:
        """Open the catalog on a thread of its own and return what operations work with. Blocks until it is open.

        `rank_layouts` and `heads`: see EngineContext. `group_bytes`: one of vLLM's blocks in each KV cache group, on
        one rank. Empty: as the shape says.
        """
        self.passports.name(passport)
        on_gone, store_id = self.shared_catalog_sync.note_gone, self.claims.engine_id
        return EngineContext(
            settings=self.settings,
            model=self.shape.model,
            passports=self.passports,
            canary_tokens=self.shape.canary_tokens,
            geometry=self.geometry,
            group_bytes=group_bytes or (self.shape.block_bytes,),
            heads=heads,
            rank_layouts=rank_layouts,
            hash_tokens=self.shape.hash_unit,
            world_size=self.shape.world_size,
            catalog=CatalogThread(lambda: open_catalog(self.settings, store_id, on_gone)),
            scheduler=self.scheduler,
            step_queue=self.step_queue,
            board=self.board,
            locations=self.locations,
            thaw_bindings=self.thaw_bindings,
            adapters=self.adapters,
            metrics=self.metrics,
            observer=self.observer,
            submit_prefill=self.submit_prefill,
            submit_proof=self.submit_proof,
            abort_request=self.abort_request,
            durable_tiers={tier.name: tier for tier in self.durable_tiers},
            claims=self.claims,
        )

    def cache_dropped(self) -> bool:
        """Unbind every thaw, because vLLM drops its caches, often for other weights. Engine thread.

        Return False while a copy is under way, which vLLM must not pull the cache from under. Windows stay and can be
        thawed again.
        """
        if not self.scheduler.copy_gate.drained():
            return False
        self.thaw_bindings.clear()
        self.adapters.cache_dropped()
        self.passports.suspect(cache_dropped=True)
        return True

    def close(self) -> None:
        """Close this process's view of the durable tiers."""
        self.adapters.close()
        for tier in self.durable_tiers:
            tier.close()


def _open_home(settings: Settings) -> str:
    store_id = open_home(settings.home, settings.chunks_path, settings.catalog_path)
    require_catalog(settings.catalog_path, settings.chunks_path)
    return store_id


def _session_index(
    shape: EngineShape,
    geometry: Geometry,
    thaw_bindings: ThawBindings,
    window_matches: WindowMatches,
    extras: RequestExtras,
    request_title: RequestTitle | None,
) -> SessionIndex:
    return SessionIndex(
        shape.model,
        shape.hash_unit,
        thaw_bindings.thawed_into,
        request_title,
        continued=window_matches.continued,
        chunk_tokens=geometry.chunk_tokens,
        resumes=thaw_bindings.resumes,
        extras=extras,
    )


def build_engine(
    settings: Settings,
    shape: EngineShape,
    *,
    wake: Callable[[], None],
    submit_prefill: SubmitPrefill,
    submit_proof: SubmitProof,
    abort_request: AbortRequest,
    request_title: RequestTitle | None = None,
    is_paused: Callable[[], bool] = lambda: False,
    record_span: RecordSpan | None = None,
) -> EngineParts:
    """Open the home and return the parts of an engine. Blocks on the disk.

    `wake` makes an idle engine step, and `is_paused` says whether it takes none. Any thread may call them.
    `record_span`: hands spans to vLLM's tracing, if that is on. Control thread.
    Raises: `Code.ARGUMENT` for a folder that can't be written or is another home's, `Code.CORRUPT` without a catalog.
    """
    store_id = _open_home(settings)
    geometry = Geometry.of(shape.block_tokens, settings.chunk_tokens, shape.groups)
    board, locations, step_queue = JobBoard(shape.world_size), ChunkLocations(shape.world_size), StepQueue(wake)
    thaw_bindings, passports = ThawBindings(), CurrentPassport(has_canary=len(shape.canary_tokens) > 0)
    extras = RequestExtras(shape.hash_unit, Adapters(shape.adapter_options, step_queue.nudge))
    metrics, window_matches = Metrics(), WindowMatches(geometry, thaw_bindings, extras=extras)
    sessions = _session_index(shape, geometry, thaw_bindings, window_matches, extras, request_title)
    scheduler = SchedulerSide(
        geometry=geometry,
        sessions=sessions,
        window_matches=window_matches,
        board=board,
        step_queue=step_queue,
        locations=locations,
        metrics=metrics,
        load_policy=settings.load,
        copy_gate=CopyGate(board, is_paused, lambda: passports.is_known),
        hash_tokens=shape.hash_unit,
    )
    return EngineParts(
        passports=passports,
        settings=settings,
        shape=shape,
        geometry=geometry,
        scheduler=scheduler,
        step_queue=step_queue,
        board=board,
        locations=locations,
        thaw_bindings=thaw_bindings,
        adapters=extras.adapters,
        metrics=metrics,
        observer=Observer(metrics, record_span),
        submit_prefill=submit_prefill,
        submit_proof=submit_proof,
        abort_request=abort_request,
        durable_tiers=open_tiers(settings, store_id),
        claims=Claims(engine_id=store_id, shared=settings.catalog is CatalogKind.REDIS, since=now_micros()),
        shared_catalog_sync=SharedCatalogSync(),
    )


async def start_operations(engine: EngineContext) -> Dispatcher:
    """Return the operations, ready for the first call. The check of the home may go on."""
    operations = Dispatcher(engine)
    await operations.home_check.start()
    await operations.prepare()
    return operations
