"""The loads of requests: post each to the workers, count its result, and offer nothing again that could not be read.

Engine thread only. Nothing here blocks.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from cwm_connector.core.errors import Code
from cwm_connector.core.identity import ChunkSpec, Geometry
from cwm_connector.core.types import TierName
from cwm_connector.metrics import Metrics
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.step.job_board import JobBoard, JobResult
from cwm_connector.step.jobs import ChunkBlocks, ChunkOutcome, FailedLoad, LoadJob
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
    ) -> None:
        self._geometry = geometry
        self._board = board
        self._locations = locations
        self._metrics = metrics
        self._choice = choice
        self._read_speed = read_speed
        self._under_way = LoadsUnderWay()
        self._matches: dict[str, Match] = {}
        self._choices: dict[str, tuple[Match, int]] = {}
        """By request: its match, and the block up to which it is loaded. vLLM may ask in every step."""
        self._no_more: set[str] = set()
        self._sources: dict[str, dict[TierName, int]] = {}

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
        if (chosen := self._choices.pop(request.request_id, None)) is not None:
            self._metrics.declined_tokens.inc((chosen[0].to_block - chosen[1]) * self._geometry.block_tokens)
        if external_tokens == 0:
            self._under_way.ended(request.request_id)
            return
        ids, match = blocks.get_block_ids()[0], self._matches.pop(request.request_id, None)
        try:
            assert match is not None, "vLLM allocated blocks for a load that was not offered"
            self._post(request, match, ids)
        except Exception:
            logger.exception("a load could not be planned, so its tokens are computed")
            self._no_more.add(request.request_id)
            bad = ids if match is None else ids[match.from_block : match.to_block]
            self._board.post(FailedLoad(self._board.next_id(), request.request_id, tuple(bad)))

    def hit_sources(self, request_id: str) -> dict[TierName, int]:
        """Return the tokens of the load that was just posted, by the tier that holds them, and forget them."""
        return self._sources.pop(request_id, {})

    def finished(self, request_id: str) -> None:
        """Forget a request."""
        self._matches.pop(request_id, None)
        self._sources.pop(request_id, None)
        self._choices.pop(request_id, None)
        self._no_more.discard(request_id)
        self._under_way.finished(request_id)

    # --- internal ---

    def _post(self, request: "Request", match: Match, ids: Sequence[int]) -> None:
        request_id = request.request_id
        if match.automatic:
            self._metrics.auto_thaws.inc()
            logger.debug("a request loads window %s without a thaw", match.window.name)
        parts = tuple(_parts(match.window.chunks, match.from_block, match.to_block, ids))
        self._sources[request_id] = self._tokens_by_tier(parts)
        ticket = self._board.post(LoadJob(self._board.next_id(), request_id, parts))
        ticket.finished.add_done_callback(lambda result: self._loaded(request_id, match.window, parts, result))
        self._under_way.started(request, match.from_block, match.to_block)

    def _tokens_by_tier(self, parts: Sequence[ChunkBlocks]) -> dict[TierName, int]:
        tokens: dict[TierName, int] = {}
        for part in parts:
            # A chunk that no tier is known to have is still looked for on disk.
            tier = self._locations.fastest(part.chunk.key) or TierName.DISK
            tokens[tier] = tokens.get(tier, 0) + len(part.block_ids) * self._geometry.block_tokens
        return tokens

    def _loaded(
        self, request_id: str, window: BoundWindow, parts: Sequence[ChunkBlocks], result: "Future[JobResult]"
    ) -> None:
        """Count a finished load, and do not offer again what could not be read."""
        if result.exception() is not None:
            self._exclude(request_id)
            return
        outcomes = result.result().outcomes
        loaded: Counter[TierName] = Counter()
        tokens: Counter[TierName | None] = Counter()
        for part in parts:
            outcome = outcomes.get(part.chunk.key)
            tier = None if outcome is None or outcome.failure is not None else outcome.tier
            tokens[tier] += len(part.block_ids) * self._geometry.block_tokens
            if tier is not None:
                loaded[tier] += 1
                self._locations.saw_use(part.chunk.key)
        for tier, chunks in loaded.items():
            self._metrics.loaded(tier, chunks, tokens[tier])
        if missed := len(parts) - loaded.total():
            self._metrics.missed(missed, tokens[None])
            self._exclude(request_id)
            _note_failures(window, [outcomes.get(part.chunk.key) for part in parts], parts)
        self._metrics.load_seconds.observe(result.result().seconds)
        self._read_speed.measured({tier: tokens[tier] for tier in loaded}, result.result().seconds)

    def _exclude(self, request_id: str) -> None:
        if self._under_way.failed(request_id):
            self._no_more.add(request_id)


def _note_failures(window: BoundWindow, outcomes: Sequence[ChunkOutcome | None], parts: Sequence[ChunkBlocks]) -> None:
    """Log the first chunk that could not be loaded, and do not offer what is missing or corrupt again."""
    failed = [(each.failure, part) for each, part in zip(outcomes, parts, strict=True) if each and each.failure]
    for (code, reason), _ in failed[:1]:
        logger.warning("window %s: a chunk could not be loaded (CWM-%d: %s)", window.name, code, reason)
    for (code, _), part in failed:
        if code in (Code.CORRUPT, Code.CHUNK_MISSING):
            window.usable_blocks = min(window.usable_blocks, part.chunk.first_block)


def _parts(
    chunks: Sequence[ChunkSpec], from_block: int, to_block: int, block_ids: Sequence[int]
) -> Iterator[ChunkBlocks]:
    """Yield the parts of `chunks` that cover blocks [from_block, to_block).

    `block_ids` are all blocks of the request, from its block 0.
    """
    for chunk in chunks:
        start, end = max(chunk.first_block, from_block), min(chunk.end_block, to_block)
        if start < end:
            yield ChunkBlocks(chunk, tuple(block_ids[start:end]), start - chunk.first_block)
