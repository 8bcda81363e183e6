"""The loads of requests: post each to the workers, count its result, and offer nothing again that could not be read.

Engine thread only. Nothing here blocks.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from cwm_connector.core.errors import Code
from cwm_connector.core.identity import ChunkSpec, Geometry
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.metrics import Metrics
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.step.boundaries.loads import BoundaryRun
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.step.job_board import JobBoard, JobResult
from cwm_connector.step.jobs import ChunkOutcome, ChunkRun, FailedLoad, LoadJob
from cwm_connector.step.load_choice import LoadChoice
from cwm_connector.step.loads_under_way import LoadsUnderWay
from cwm_connector.step.read_speed import ReadSpeed
from cwm_connector.step.window_matches import Match

if TYPE_CHECKING:
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)


class HasBlockIds(Protocol):
    """vLLM's blocks of a request."""

    def get_block_ids(self) -> tuple[list[int], ...]:
        """Return the ids by KV cache group, from the request's block 0."""


class RequestLoads:
    """The loads that requests may begin, and those under way."""

    def __init__(
        self,
        geometry: Geometry,
        board: JobBoard,
        locations: ChunkLocations,
        metrics: Metrics,
        choice: LoadChoice,
        read_speed: ReadSpeed,
        hashes_per_block: int = 1,
    ) -> None:
        self._geometry = geometry
        self._board = board
        self._locations = locations
        self._metrics = metrics
        self._choice = choice
        self._read_speed = read_speed
        self._under_way = LoadsUnderWay(hashes_per_block=hashes_per_block)
        self._matches: dict[str, Match] = {}
        self._choices: dict[str, tuple[Match, int]] = {}
        """By request: its match, and the block up to which it is loaded. vLLM may ask in every step."""
        self._no_more: set[str] = set()
        self._sources: dict[str, dict[TierName, int]] = {}
        self._loaded_tokens: dict[str, int] = {}
        """By request that has posted a load."""
        self._posted_tokens: dict[str, int] = {}
        """By request whose load has not been reported as finished."""

    def asked(self, request_id: str) -> None:
        """Forget the last match of a request. vLLM asks again what it can load, so it has no blocks."""
        self._matches.pop(request_id, None)
        self._under_way.ended(request_id)

    def is_waiting(self, request_id: str, from_block: int) -> bool:
        """Return whether the request waits for the load of another one."""
        return self._under_way.is_waiting(request_id, from_block)

    def may_load(self, request_id: str) -> bool:
        """Return False if a load of the request has failed."""
        return request_id not in self._no_more

    def choose(self, request_id: str, match: Match | None) -> Match | None:
        """Return the part of the match that is worth loading, or None if there is none."""
        if match is None:
            self._choices.pop(request_id, None)
            return None
        chosen = self._choices.get(request_id)
        if chosen is None or chosen[0] != match:
            end = self._choice.end_of_load(match.window.chunks, match.from_block, match.to_block)
            self._choices[request_id] = chosen = (match, end)
        return replace(match, to_block=chosen[1]) if chosen[1] > match.from_block else None

    def take_match(self, request: "Request", match: Match | None) -> int | None:
        """Return how many blocks of the match the request will load, or None if another request loads them now."""
        if match is None:
            return 0
        if self._under_way.wait(request, match):
            self._metrics.shared_loads.inc()
            return None
        self._matches[request.request_id] = match
        return match.to_block - match.from_block

    def blocks_allocated(self, request: "Request", blocks: HasBlockIds, external_tokens: int) -> None:
        """Post the load of the last match. vLLM calls it again, without external tokens, when the load is done."""
        chosen = self._choices.pop(request.request_id, None)
        if external_tokens == 0:
            self._under_way.ended(request.request_id)
            if (tokens := self._posted_tokens.pop(request.request_id, None)) is not None:
                self._loaded_tokens[request.request_id] = tokens  # all is verified, the last copies are under way
        else:
            self._start(request, blocks)
        if chosen is not None:
            self._metrics.declined_tokens.inc((chosen[0].to_block - chosen[1]) * self._geometry.block_tokens)

    def hit_sources(self, request_id: str) -> dict[TierName, int]:
        """Return the tokens of the load that was just posted, by the tier that holds them, and forget them."""
        return self._sources.pop(request_id, {})

    def finished(self, request_id: str) -> int:
        """Forget a request and return how many tokens were really loaded for it."""
        self._matches.pop(request_id, None)
        self._sources.pop(request_id, None)
        self._choices.pop(request_id, None)
        self._no_more.discard(request_id)
        self._posted_tokens.pop(request_id, None)
        self._under_way.finished(request_id)
        return self._loaded_tokens.pop(request_id, 0)

    # --- internal ---

    def _start(self, request: "Request", blocks: HasBlockIds) -> None:
        """Post the load of the last match. vLLM waits for its end, so one that fails is posted as such."""
        ids, match = blocks.get_block_ids(), self._matches.pop(request.request_id, None)
        try:
            assert match is not None, "vLLM allocated blocks for a load that was not offered"
            self._post(request, match, ids)
        except Exception:
            logger.exception("a load could not be planned, so its tokens are computed")
            self._no_more.add(request.request_id)
            bad = ids[0] if match is None else ids[0][match.from_block : match.to_block]
            self._board.post(FailedLoad(self._board.next_id(), request.request_id, tuple(bad)))

    def _post(self, request: "Request", match: Match, ids: Sequence[Sequence[int]]) -> None:
        request_id = request.request_id
        if match.automatic:
            self._metrics.auto_thaws.inc()
            logger.debug("a request loads window %s without a thaw", match.window.name)
        chunks = BoundaryRun(self._geometry, match, ids) if self._geometry.groups else self._chunks(match, ids[0])
        self._sources[request_id] = self._tokens_by_tier(chunks)
        self._loaded_tokens[request_id] = 0
        self._posted_tokens[request_id] = (match.to_block - match.from_block) * self._geometry.block_tokens
        ticket = self._board.post(LoadJob(self._board.next_id(), request_id, chunks))
        ticket.finished.add_done_callback(lambda result: self._loaded(request_id, match.window, chunks, result))
        self._under_way.started(request, match.from_block, match.to_block)

    def _chunks(self, match: Match, ids: Sequence[int]) -> ChunkRun:
        """Return the chunks of the match with the request's blocks. `ids` are all of these, from its block 0."""
        size = self._geometry.blocks_per_chunk
        chunks = match.window.chunks[match.from_block // size : -(-match.to_block // size)]
        return ChunkRun(chunks, match.from_block, ids[match.from_block : match.to_block])

    def _tokens_by_tier(self, chunks: ChunkRun | BoundaryRun) -> dict[TierName, int]:
        tokens: Counter[TierName] = Counter()
        tiers = self._locations.fastest_of(chunk.key for chunk in chunks.specs)
        for tier, blocks in zip(tiers, chunks.block_counts(), strict=True):
            # A chunk that no tier is known to have is still looked for on disk.
            tokens[tier or TierName.DISK] += blocks * self._geometry.block_tokens
        return dict(tokens)

    def _loaded(
        self, request_id: str, window: BoundWindow, chunks: ChunkRun | BoundaryRun, result: "Future[JobResult]"
    ) -> None:
        """Count a finished load, and do not offer again what could not be read."""
        self._posted_tokens.pop(request_id, None)
        if result.exception() is not None:
            self._exclude(request_id)
            return
        outcomes = result.result().outcomes
        loaded: Counter[TierName] = Counter()
        tokens: Counter[TierName | None] = Counter()
        used, leading = [], 0
        for chunk, blocks in zip(chunks.specs, chunks.block_counts(), strict=True):
            outcome = outcomes.get(chunk.key)
            tier = None if outcome is None or outcome.failure is not None else outcome.tier
            tokens[tier] += blocks * self._geometry.block_tokens
            leading += 0 if tokens[None] else blocks * self._geometry.block_tokens
            if tier is not None:
                loaded[tier] += 1
                used.append(chunk.key)
        self._locations.saw_use(used)
        for tier, count in loaded.items():
            self._metrics.loaded(tier, count, tokens[tier])
        if request_id in self._loaded_tokens:
            # vLLM computes everything from the first bad chunk on, or everything if it resumes at boundaries alone.
            self._loaded_tokens[request_id] = 0 if self._geometry.groups and len(used) < len(chunks) else leading
        if missed := len(chunks) - len(used):
            self._metrics.missed(missed, tokens[None])
            self._exclude(request_id)
            _note_failures(window, chunks.specs, outcomes)
        self._metrics.load_seconds.observe(result.result().seconds)
        self._read_speed.measured({tier: tokens[tier] for tier in loaded}, result.result().seconds)

    def _exclude(self, request_id: str) -> None:
        if self._under_way.failed(request_id):
            self._no_more.add(request_id)


def _note_failures(window: BoundWindow, chunks: Sequence[ChunkSpec], outcomes: Mapping[ChunkKey, ChunkOutcome]) -> None:
    """Log the first chunk that could not be loaded, and do not offer what is missing or corrupt again."""
    reported = [(chunk, outcomes[chunk.key].failure) for chunk in chunks if chunk.key in outcomes]
    failed = [(chunk, failure) for chunk, failure in reported if failure is not None]
    for _, (code, reason) in failed[:1]:
        logger.warning("window %s: a chunk could not be loaded (CWM-%d: %s)", window.name, code, reason)
    for chunk, (code, _) in failed:
        if code in (Code.CORRUPT, Code.CHUNK_MISSING):
            window.usable_blocks = min(window.usable_blocks, chunk.usable_without)
