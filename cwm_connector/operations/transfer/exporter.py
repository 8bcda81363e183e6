"""`cwm export`: writes a window's chunks, each verified under its own key, into one file (archive.py).

    row, chunks, tokens -> check passport and recompute keys -> temporary file -> each chunk: read, check, append
    -> digest, fsync, rename

`chunk_lock` is not held, so freezes and deletes go on meanwhile. A chunk that was moved is looked up again. The export
ends if its window is deleted. A chunk without a good durable copy is first replaced from CPU memory, if it is there.
Control thread. Blocking steps run on the transfer's own thread.
"""

import time
from array import array
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from cwm_connector.catalog.base import Catalog, ChunkRow, Proof, WindowRow
from cwm_connector.control.async_helpers import finish_even_if_cancelled
from cwm_connector.control.calls import ProgressSink
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec, Geometry, Passport, boundaries_of, specs_of, window_chunks
from cwm_connector.core.names import check_window_name
from cwm_connector.core.types import ChunkKey, TierName, now_micros
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.tiering import Tiering
from cwm_connector.operations.transfer.archive import ArchiveChunk, ArchiveHeader, ArchiveProof
from cwm_connector.operations.transfer.archive_files import Target, checked_path
from cwm_connector.operations.transfer.steps import (
    TransferThread,
    check_part,
    new_buffer,
    part_bytes,
    require_outside_store,
)
from cwm_connector.protocol.calls import ExportArgs
from cwm_connector.protocol.results import Exported
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.stack import BAD_COPY


@dataclass(frozen=True, slots=True)
class _Window:
    row: WindowRow
    chunks: Sequence[ChunkRow]
    specs: Sequence[ChunkSpec]
    """The chunks again, as this engine divides the tokens."""
    token_ids: bytes
    proof: Proof | None


class _NoGoodCopy(CWMError):
    """No recorded durable tier has intact bytes of a part. `Code.CHUNK_MISSING` or `Code.CORRUPT`."""

    def __init__(self, code: Code) -> None:
        super().__init__(code, "no tier has a good copy of a chunk; freeze its session again")


class Exporter:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext, tiering: Tiering) -> None:
        self._engine = engine
        self._tiering = tiering

    async def export(self, args: ExportArgs, progress: ProgressSink) -> Exported:
        """Write a window to a file, whole or not at all.

        Raises: `Code.WINDOW_NAME`, `Code.ARGUMENT`, `Code.WINDOW_NOT_FOUND`, `Code.CHUNK_MISSING`, `Code.WRITE_FAILED`,
        `Code.READ_FAILED`, `Code.QUOTA`, `Code.CORRUPT`, `Code.BACKEND`, `Code.PASSPORT`.
        """
        started = time.perf_counter()
        name, path = check_window_name(args.window_name), checked_path(args.path)
        window = await self._engine.catalog.run(lambda catalog: _read(catalog, name, self._engine.geometry))
        await self._engine.known_passport()
        self._engine.require_same_passport(window.row.passport, f"window {name!r}")
        with TransferThread("export", path, Code.WRITE_FAILED) as thread:
            await thread.run(require_outside_store, self._engine.settings, path)
            header = await thread.run(self._header, window)
            target = Target(path, force=args.force)
            try:
                await thread.run(target.begin, header)
                for done, chunk in enumerate(window.specs):
                    progress(done, len(window.chunks), "chunks exported")
                    await self._append(name, chunk, target, thread)
                n_bytes = await finish_even_if_cancelled(thread.run(target.finish))
            except BaseException:
                await thread.clean_up(target.discard)
                raise
        progress(len(window.chunks), len(window.chunks), "chunks exported")
        return Exported(
            window_name=name,
            path=str(path),
            bytes=n_bytes,
            chunks=len(window.chunks),
            token_count=window.row.token_count,
            restorable_tokens=window.row.restorable_tokens,
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
        )

    def _header(self, window: _Window) -> ArchiveHeader:
        row = window.row
        return ArchiveHeader(
            name=row.name,
            description=row.description,
            tags=row.tags,
            model=row.model,
            passport=dict(row.passport),
            block_tokens=self._engine.geometry.block_tokens,
            chunk_tokens=self._chunk_tokens(window),
            token_ids=window.token_ids,
            restorable_tokens=row.restorable_tokens,
            chunks=tuple(
                ArchiveChunk(row.key, row.tokens, self._sizes(row, spec))
                for row, spec in zip(window.chunks, window.specs, strict=True)
            ),
            created_at=row.frozen_at,
            exported_at=now_micros(),
            session_id=row.session_id if row.origin is None else row.origin.frozen_from,
            head=row.head,
            parent=row.parent,
            private=row.private,
            proof=None if window.proof is None else ArchiveProof(*astuple(window.proof)),
        )

    def _chunk_tokens(self, window: _Window) -> int:
        """Return the tokens of a whole chunk in this window.

        The keys are computed again from the tokens, as an import will do. Raises: `Code.CORRUPT` if they differ.
        """
        tokens = array("i")
        tokens.frombytes(window.token_ids)
        keys = [chunk.key for chunk in window.chunks]
        own = self._engine.geometry
        earlier = replace(own, blocks_per_chunk=window.specs[0].blocks)  # CWM_CHUNK_TOKENS may have changed since
        for geometry in (own, earlier):
            passport, boundaries = Passport(window.row.passport), boundaries_of(own, window.specs)
            specs = window_chunks(passport, geometry, tokens, boundaries)
            if [spec.key for spec in specs[: len(keys)]] == keys:
                return geometry.chunk_tokens
        raise CWMError(
            Code.CORRUPT,
            f"the chunks of window {window.row.name!r} do not follow from its tokens; see `cwm health catalog`",
        )

    def _sizes(self, chunk: ChunkRow, spec: ChunkSpec) -> tuple[int, ...]:
        """Return the sizes of a chunk's parts.

        Raises: `Code.CORRUPT` for a row whose size this engine would not store.
        """
        sizes = (part_bytes(self._engine, spec),) * self._engine.world_size
        if sum(sizes) != chunk.size_bytes:
            raise CWMError(
                Code.CORRUPT, f"a chunk is recorded with {chunk.size_bytes} bytes instead of {sum(sizes)}; freeze again"
            )
        return sizes

    async def _append(self, window: str, chunk: ChunkSpec, target: Target, thread: TransferThread) -> None:
        """Append every rank's part, from the fastest tier that has a good copy."""
        for rank in range(self._engine.world_size):
            sealed = await self._good_copy(window, ChunkId(chunk.key, rank), chunk, thread)
            await thread.run(target.add, sealed)

    async def _good_copy(self, window: str, part: ChunkId, chunk: ChunkSpec, thread: TransferThread) -> memoryview:
        """Return a part's verified bytes. A bad copy is replaced first.

        Raises: `Code.WINDOW_NOT_FOUND` if the window is gone, `Code.CHUNK_MISSING` or `Code.CORRUPT` if no tier has a
        good copy, `Code.READ_FAILED`, `Code.BACKEND`.
        """
        for _ in range(2):  # a chunk may be moved during the first attempt
            try:
                return await self._read_part(part, chunk, thread)
            except _NoGoodCopy as none:
                found = none.code
        row = await self._still_referred_to(window, part.key)
        for tier in row.tiers or {TierName.DISK}:
            await finish_even_if_cancelled(self._tiering.replace(row, tier))
        try:
            return await self._read_part(part, chunk, thread)
        except _NoGoodCopy:
            raise CWMError(
                found, f"a chunk of window {window!r} has no good copy left, so it can't be exported; freeze it again"
            ) from None

    async def _read_part(self, part: ChunkId, chunk: ChunkSpec, thread: TransferThread) -> memoryview:
        """Return verified bytes from the fastest durable tier that is recorded to have them.

        Raises: _NoGoodCopy, or `Code.READ_FAILED` and `Code.BACKEND` if a tier that may have a good copy can't be
        asked.
        """
        stored = await self._engine.catalog.run(lambda catalog: catalog.stored([part.key]))
        recorded = stored[part.key].tiers if part.key in stored else ()
        bad, unread = _NoGoodCopy(Code.CHUNK_MISSING), list[CWMError]()
        for tier in (tier for tier in self._engine.durable_tiers if tier in recorded):
            sealed = new_buffer(part_bytes(self._engine, chunk))
            try:
                await thread.through(self._engine.durable_tiers[tier].read(part, sealed))
                await thread.run(check_part, self._engine, sealed, part, chunk)
                return sealed
            except CWMError as failure:
                if failure.code in BAD_COPY:
                    bad = _NoGoodCopy(failure.code)
                else:
                    unread.append(failure)
        raise unread[0] if unread else bad

    async def _still_referred_to(self, window: str, key: ChunkKey) -> ChunkRow:
        """Return the chunk's row. Raises: `Code.WINDOW_NOT_FOUND` if the window was deleted meanwhile."""

        def look(catalog: Catalog) -> ChunkRow:
            catalog.window(window)
            return catalog.stored([key])[key]  # every chunk of a window has a row

        return await self._engine.catalog.run(look)


def _read(catalog: Catalog, name: str, geometry: Geometry) -> _Window:
    chunks = catalog.chunks_of(name)
    specs = specs_of(geometry, [chunk.key for chunk in chunks], [chunk.tokens for chunk in chunks])
    return _Window(catalog.window(name), chunks, specs, catalog.token_ids_of(name), catalog.proof_of(name))
