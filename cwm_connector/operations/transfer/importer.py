"""`cwm import`: a window out of an exported file, by the same steps and with the same care as a freeze.

    header -> passport, geometry, keys recomputed, name free -> the turn: which chunks are stored? room -> part after
    part: read, check, write what is missing -> digest over the file, fsync of the tiers -> one catalog transaction

Nothing is visible before the last step. The file is a stranger's: nothing of it is believed before it was checked here,
and a key is what this engine computes from its own passport and the file's tokens, never the file's word. That the KV
under a key is really that of its tokens can't be shown; whoever wrote the file vouches for it.

The window's session is one of its own, so that no session here is taken for the stranger's: `imported:NAME`.
Control thread; whatever blocks runs on the transfer's own thread.
"""

import hashlib
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cwm_connector.catalog.base import NewWindow, WindowRow
from cwm_connector.catalog.results import iso
from cwm_connector.control.calls import ProgressSink
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec, chunk_specs
from cwm_connector.core.names import check_description, check_tags, check_window_name
from cwm_connector.core.types import Micros
from cwm_connector.operations.async_helpers import finish_even_if_cancelled
from cwm_connector.operations.context import EngineContext, passport_mismatch
from cwm_connector.operations.tiering import Tiering
from cwm_connector.operations.transfer.archive import ArchiveHeader
from cwm_connector.operations.transfer.archive_files import Source, checked_path
from cwm_connector.operations.transfer.steps import (
    TransferThread,
    check_part,
    new_buffer,
    part_bytes,
)
from cwm_connector.operations.window_commit import WindowCommit
from cwm_connector.protocol.calls import ImportArgs
from cwm_connector.step.scheduler import SaveOrder
from cwm_connector.tiers.base import ChunkId

_SESSION: Final = "imported:"
_MAX_SESSION: Final = 128


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The window to be, and what the file brings for it."""

    name: str
    description: str
    tags: list[str]
    token_ids: bytes
    chunks: tuple[ChunkSpec, ...]


class Importer:
    """The control thread's."""

    def __init__(self, engine: EngineContext, tiering: Tiering) -> None:
        self._engine = engine
        self._tiering = tiering
        self._window_commit = WindowCommit(engine, tiering)

    async def import_window(self, args: ImportArgs, progress: ProgressSink) -> dict[str, Any]:
        """See the module's text. `args.window_name` instead of the file's name, `args.tags` besides its tags.

        Raises: 1002, 1003, 3003, 4001–4004, 5002, 5003. The window is there whole or not at all.
        """
        started = time.perf_counter()
        path = checked_path(args.path)
        with TransferThread("import", path, Code.READ_FAILED) as thread:
            source = Source(path)
            try:
                await thread.run(source.open)
                wanted = await thread.run(self._wanted, source.header, args)
                await self._window_commit.require_free(wanted.name)
                async with self._engine.chunk_lock:
                    row, order = await self._take_in(wanted, source, thread, progress)
                    self._tiering.used([chunk.key for chunk in wanted.chunks])
            finally:
                await thread.clean_up(source.close)
        new_bytes = sum(self._engine.stored_bytes(chunk.blocks) for chunk in order.chunks)
        self._engine.metrics.stored_bytes.inc(new_bytes)
        return {
            "window_name": row.name,
            "path": str(path),
            "bytes": source.n_bytes,
            "chunks": row.block_count,
            "token_count": row.token_count,
            "restorable_tokens": row.restorable_tokens,
            "new_bytes": new_bytes,
            "shared_chunks": row.block_count - len(order.chunks),
            "exported_as": source.header.name,
            "frozen_at": iso(Micros(source.header.created_at)),
            "frozen_from": source.header.session_id,
            "duration_ms": round((time.perf_counter() - started) * 1000, 3),
        }

    # --- the header ---

    def _wanted(self, header: ArchiveHeader, args: ImportArgs) -> _Wanted:
        """Raises: CWM-1002, 1003 for names; CWM-5003 for a file that is another engine's; CWM-4004."""
        name = check_window_name(header.name if args.window_name is None else args.window_name)
        description, tags = check_description(header.description), check_tags([*header.tags, *args.tags])
        self._require_fitting(header)
        return _Wanted(name, description, tags, header.token_ids, self._chunks(header))

    def _require_fitting(self, header: ArchiveHeader) -> None:
        what, geometry = "the exported window", self._engine.geometry
        self._engine.require_same_passport(header.passport, what)
        for field, ours, theirs in (
            ("model", self._engine.model, header.model),
            ("block_tokens", str(geometry.block_tokens), str(header.block_tokens)),
            ("chunk_tokens", str(geometry.block_tokens * geometry.blocks_per_chunk), str(header.chunk_tokens)),
            ("ranks", str(self._engine.world_size), str(header.ranks)),
        ):
            if ours != theirs:
                raise passport_mismatch(what, field, ours, theirs)

    def _chunks(self, header: ArchiveHeader) -> tuple[ChunkSpec, ...]:
        """The chunks that passport and tokens make, as many of them as the file brings. Raises: CWM-4004."""
        engine = self._engine
        tokens = array("i")
        tokens.frombytes(header.token_ids)
        if min(tokens) < 0:
            raise _wrong("one of its token ids is negative")
        specs = chunk_specs(engine.passport, engine.geometry, tokens)[: len(header.chunks)]
        if [spec.key for spec in specs] != [chunk.key for chunk in header.chunks]:
            raise _wrong("its chunks are not those of its tokens")
        for spec, chunk in zip(specs, header.chunks, strict=True):
            if any(size != part_bytes(engine, spec.blocks) for size in chunk.sizes):
                raise _wrong("its chunks are longer or shorter than this engine's")
        return specs

    # --- the chunks ---

    async def _take_in(
        self, wanted: _Wanted, source: Source, thread: TransferThread, progress: ProgressSink
    ) -> tuple[WindowRow, SaveOrder]:
        order = await self._window_commit.order_missing(wanted.chunks)
        try:
            await self._read_all(wanted, order, source, thread, progress)
        except BaseException:
            await finish_even_if_cancelled(self._window_commit.discard(order))
            raise
        return await self._window_commit.commit(self._new_window(wanted, order, source.header), order), order

    async def _read_all(
        self, wanted: _Wanted, order: SaveOrder, source: Source, thread: TransferThread, progress: ProgressSink
    ) -> None:
        """Returns once the whole file is checked and what was missing is durable."""
        missing = {chunk.key for chunk in order.chunks}
        layouts: list[bytes] = []
        for done, chunk in enumerate(wanted.chunks):
            progress(done, len(wanted.chunks), "chunks imported")
            for rank in range(self._engine.world_size):
                part, sealed = ChunkId(chunk.key, rank), new_buffer(part_bytes(self._engine, chunk.blocks))
                await thread.run(source.read_into, sealed)
                layouts.append(await thread.run(self._check, sealed, part, chunk))
                if chunk.key in missing:
                    stores = [self._engine.durable_tiers[tier] for tier in order.tiers]
                    await thread.through_all([store.write(part, sealed, order.claim) for store in stores])
        await thread.run(source.finish)
        self._check_layouts(layouts)
        for tier in order.tiers if order.chunks else ():
            await thread.run(self._engine.durable_tiers[tier].sync)
        progress(len(wanted.chunks), len(wanted.chunks), "chunks imported")

    def _check(self, sealed: memoryview, part: ChunkId, chunk: ChunkSpec) -> bytes:
        """The part's layout. Raises: CWM-4004."""
        try:
            return check_part(self._engine, sealed, part, chunk.blocks)
        except CWMError as problem:
            at = chunk.first_block * self._engine.geometry.block_tokens
            raise _wrong(f"the chunk at token {at} fails its check ({problem.context.get('fault')})") from None

    def _check_layouts(self, layouts: Sequence[bytes]) -> None:
        """All chunks of a rank are laid out alike, and as the passport's fingerprint over all ranks says."""
        ranks = self._engine.world_size
        first = layouts[:ranks]
        known = self._engine.passport.fields.get("layout", "").rpartition(":")[2]
        differs = known and hashlib.sha256(b"".join(first)).hexdigest() != known
        if differs or any(layout != first[number % ranks] for number, layout in enumerate(layouts)):
            raise _wrong("its pages are laid out otherwise than its passport says")

    def _new_window(self, wanted: _Wanted, order: SaveOrder, header: ArchiveHeader) -> NewWindow:
        return self._window_commit.new_window(
            name=wanted.name,
            description=wanted.description,
            tags=wanted.tags,
            session_id=f"{_SESSION}{wanted.name}"[:_MAX_SESSION],
            head=header.head,
            parent=None,
            token_ids=wanted.token_ids,
            chunks=wanted.chunks,
            stored=self._window_commit.new_rows(order, lambda chunk: self._engine.stored_bytes(chunk.blocks)),
        )


def _wrong(fault: str) -> CWMError:
    return CWMError(Code.CORRUPT, f"the exported file can't be imported: {fault}; have it exported or copied again")
