"""`cwm import`: makes a window from an exported file, by the same steps as a freeze.

    header -> check passport and geometry, recompute keys, is the name free? -> take `chunk_lock` -> which chunks are
    stored? make room -> each part: read, check, write if missing -> digest of the file, fsync of the tiers
    -> one catalog transaction

With `reshard`, a file of another number of ranks is taken too. Its parts are checked as they are, and then divided over
this engine's ranks (reshard.py).

Nothing is visible before the last step. The file is not trusted: everything in it is checked before it is used, and
keys are computed from this engine's passport and the file's tokens. One thing can't be checked: that the KV under a key
was computed from its tokens. For that, the user trusts the writer of the file.

The window gets a session of its own, `imported:NAME`, so that no session of this engine is taken for the exported one.
Control thread. Blocking steps run on the transfer's own thread.
"""

import hashlib
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cwm_connector.catalog.base import NewWindow, Origin, Proof, WindowRow
from cwm_connector.catalog.results import iso
from cwm_connector.control.async_helpers import finish_even_if_cancelled
from cwm_connector.control.calls import ProgressSink
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.groups import HeadShape
from cwm_connector.core.identity import ChunkSpec, Passport, boundaries_of, specs_of, window_chunks
from cwm_connector.core.names import check_description, check_tags, check_window_name, legal_session_id
from cwm_connector.core.types import ChunkKey, Micros
from cwm_connector.operations.context import EngineContext, passport_mismatch
from cwm_connector.operations.tiering import Tiering
from cwm_connector.operations.transfer.archive import ArchiveHeader
from cwm_connector.operations.transfer.archive_files import Source, checked_path
from cwm_connector.operations.transfer.reshard import expected_passport, require_reshardable, resharded
from cwm_connector.operations.transfer.steps import TransferThread, check_part, new_buffer
from cwm_connector.operations.window_commit import WindowCommit
from cwm_connector.protocol.calls import ImportArgs
from cwm_connector.protocol.results import Imported
from cwm_connector.step.save_plan import SaveOrder
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import HEADER_BYTES, ChunkHeader, seal, sealed_bytes

_SESSION: Final = "imported:"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The window that is to be made from the file."""

    name: str
    description: str
    tags: list[str]
    token_ids: bytes
    chunks: tuple[ChunkSpec, ...]
    passport: dict[str, str]
    proof: Proof | None
    """None if the KV is divided over other ranks, which round the proof's logprob in another way."""
    origin: Origin
    file: "_File"


@dataclass(frozen=True, slots=True)
class _File:
    """The chunks as the file has them. They are the window's, unless they are divided over other ranks."""

    chunks: tuple[ChunkSpec, ...]
    ranks: int
    layout: str
    """The fingerprint of all ranks' pages, from the file's passport."""
    shape: HeadShape | None = None
    """How to divide the chunks over our ranks. None: they are so divided."""


class Importer:
    """One for each engine. Control thread only."""

    def __init__(self, engine: EngineContext, tiering: Tiering) -> None:
        self._engine = engine
        self._tiering = tiering
        self._window_commit = WindowCommit(engine, tiering)

    async def import_window(self, args: ImportArgs, progress: ProgressSink) -> Imported:
        """Make a window from a file, whole or not at all.

        `args.window_name` replaces the name in the file. `args.tags` are added to its tags.
        Raises: `Code.WINDOW_NAME`, `Code.ARGUMENT`, `Code.WINDOW_EXISTS`, `Code.WRITE_FAILED`, `Code.READ_FAILED`,
        `Code.QUOTA`, `Code.CORRUPT`, `Code.BACKEND`, `Code.PASSPORT`.
        """
        started = time.perf_counter()
        path = checked_path(args.path)
        await self._engine.known_passport()
        with TransferThread("import", path, Code.READ_FAILED) as thread:
            source = Source(path)
            try:
                await thread.run(source.open)
                wanted = await thread.run(self._wanted, source.header, args)
                await self._window_commit.require_free(wanted.name)
                async with self._engine.chunk_lock:
                    row, order = await self._store(wanted, source, thread, progress)
                    self._tiering.used([chunk.key for chunk in wanted.chunks])
            finally:
                await thread.clean_up(source.close)
        new_bytes = sum(self._engine.stored_bytes(chunk) for chunk in order.chunks)
        self._engine.metrics.stored_bytes.inc(new_bytes)
        return Imported(
            window_name=row.name,
            path=str(path),
            bytes=source.n_bytes,
            chunks=row.block_count,
            token_count=row.token_count,
            restorable_tokens=row.restorable_tokens,
            new_bytes=new_bytes,
            shared_chunks=row.block_count - len(order.chunks),
            exported_as=wanted.origin.exported_as,
            frozen_at=iso(wanted.origin.frozen_at),
            frozen_from=wanted.origin.frozen_from,
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
        )

    # --- the header ---

    def _wanted(self, header: ArchiveHeader, args: ImportArgs) -> _Wanted:
        """Check the header and return the window to make.

        Raises: `Code.WINDOW_NAME`, `Code.ARGUMENT` for names, `Code.PASSPORT` for a file of another model or engine,
        `Code.CORRUPT`.
        """
        name = check_window_name(header.name if args.window_name is None else args.window_name)
        description, tags = check_description(header.description), check_tags([*header.tags, *args.tags])
        shape = self._shape(header) if args.reshard else None
        self._require_fitting(header, shape)
        listed = self._listed(header, shape)
        passport = header.passport
        if shape is not None:
            passport = dict(self._engine.passport.carrying(Passport(passport).extras).fields)
        return _Wanted(
            name=name,
            description=description,
            tags=tags,
            token_ids=header.token_ids,
            chunks=listed if shape is None else self._specs(header, passport),
            passport=passport,
            proof=None if shape is not None else _proof(header),
            origin=_origin(header, resharded=shape is not None),
            file=_File(listed, header.ranks, header.passport.get("layout", "").rpartition(":")[2], shape),
        )

    def _shape(self, header: ArchiveHeader) -> HeadShape | None:
        """Return how to divide the file's chunks over our ranks, or None if they are so divided.

        Raises: `Code.STATE`, `Code.ARGUMENT` for a window that can't be resharded.
        """
        engine = self._engine
        if header.ranks == engine.world_size:
            return None
        return require_reshardable(engine.heads, header.passport, header.ranks)

    def _require_fitting(self, header: ArchiveHeader, shape: HeadShape | None) -> None:
        subject, geometry = "the exported window", self._engine.geometry
        passport, ranks = header.passport, header.ranks
        if shape is not None:
            passport, ranks = expected_passport(passport, self._engine.passport.fields), self._engine.world_size
        self._engine.require_same_passport(passport, subject)
        for name, ours, theirs in (
            ("model", self._engine.model, header.model),
            ("block_tokens", str(geometry.block_tokens), str(header.block_tokens)),
            ("chunk_tokens", str(geometry.block_tokens * geometry.blocks_per_chunk), str(header.chunk_tokens)),
            ("ranks", str(self._engine.world_size), str(ranks)),
        ):
            if ours != theirs:
                raise passport_mismatch(subject, name, ours, theirs)

    def _listed(self, header: ArchiveHeader, shape: HeadShape | None) -> tuple[ChunkSpec, ...]:
        """Return the file's chunks, which must follow from its passport and tokens. Raises: `Code.CORRUPT`."""
        specs = self._specs(header, header.passport)
        if [spec.key for spec in specs] != [chunk.key for chunk in header.chunks]:
            raise _damaged("its chunks do not follow from its tokens")
        for spec, chunk in zip(specs, header.chunks, strict=True):
            wanted = sealed_bytes(self._payload_bytes(spec, header.ranks, shape))
            if any(size != wanted for size in chunk.sizes):
                raise _damaged("its chunks have other lengths than this engine's")
        return specs

    def _payload_bytes(self, spec: ChunkSpec, ranks: int, shape: HeadShape | None) -> int:
        """Return the bytes of a chunk's pages on one rank of the file."""
        return self._engine.payload_bytes(spec) if shape is None else shape.payload_bytes(spec.blocks, ranks)

    def _specs(self, header: ArchiveHeader, passport: Mapping[str, str]) -> tuple[ChunkSpec, ...]:
        """Return the chunks that follow from passport and tokens, as many as the file has. Raises: `Code.CORRUPT`."""
        tokens = array("i")
        tokens.frombytes(header.token_ids)
        if min(tokens) < 0:
            raise _damaged("one of its token ids is negative")
        carrying = Passport(passport)
        try:
            carrying.extras  # noqa: B018
        except ValueError:
            raise _damaged("its images can't be read") from None
        specs = window_chunks(carrying, self._engine.geometry, tokens, self._boundaries(header))
        return specs[: len(header.chunks)]

    def _boundaries(self, header: ArchiveHeader) -> tuple[int, ...]:
        """Return where the exported window can be resumed, if not at every block. Raises: `Code.CORRUPT`."""
        geometry = self._engine.geometry
        try:
            keys = [ChunkKey(chunk.key) for chunk in header.chunks]
            listed = specs_of(geometry, keys, [chunk.tokens for chunk in header.chunks])
        except IndexError:
            raise _damaged("its chunks are not those of this model's layers") from None
        return boundaries_of(geometry, listed)

    # --- the chunks ---

    async def _store(
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
        """Read and check the whole file, and make the missing chunks durable."""
        missing = {chunk.key for chunk in order.chunks}
        tiers = [self._engine.durable_tiers[name] for name in order.tiers]
        layouts: list[bytes] = []
        for done, (listed, chunk) in enumerate(zip(wanted.file.chunks, wanted.chunks, strict=True)):
            progress(done, len(wanted.chunks), "chunks imported")
            parts = await self._read_chunk(listed, wanted.file, source, thread, layouts)
            if chunk.key not in missing:
                continue
            if wanted.file.shape is not None:
                parts = await thread.run(self._resharded, parts, chunk, wanted.file.shape)
            for rank, sealed in enumerate(parts):
                part = ChunkId(chunk.key, rank)
                await thread.through_all([tier.write(part, sealed, order.claim) for tier in tiers])
        await thread.run(source.finish)
        self._check_layouts(layouts, wanted.file)
        for tier in order.tiers if order.chunks else ():
            await thread.run(self._engine.durable_tiers[tier].sync)
        progress(len(wanted.chunks), len(wanted.chunks), "chunks imported")

    async def _read_chunk(
        self, chunk: ChunkSpec, file: _File, source: Source, thread: TransferThread, layouts: list[bytes]
    ) -> list[memoryview]:
        """Read and check all ranks' parts of the next chunk, and append their layouts. Raises: `Code.CORRUPT`."""
        payload, parts = self._payload_bytes(chunk, file.ranks, file.shape), []
        for rank in range(file.ranks):
            parts.append(new_buffer(sealed_bytes(payload)))
            await thread.run(source.read_into, parts[-1])
            layouts.append(await thread.run(self._check, parts[-1], ChunkId(chunk.key, rank), chunk, payload))
        return parts

    def _resharded(self, parts: Sequence[memoryview], chunk: ChunkSpec, shape: HeadShape) -> list[memoryview]:
        """Return our ranks' sealed parts of a chunk."""
        engine = self._engine
        payload = shape.payload_bytes(chunk.blocks, len(parts))
        pages = [part[HEADER_BYTES : HEADER_BYTES + payload] for part in parts]
        sealed = []
        for rank, own in enumerate(resharded(pages, chunk.blocks, shape, engine.world_size)):
            buffer = new_buffer(sealed_bytes(len(own)))
            buffer[HEADER_BYTES : HEADER_BYTES + len(own)] = own
            tokens = chunk.blocks * engine.geometry.block_tokens
            layout = engine.rank_layouts[rank]
            seal(buffer, ChunkHeader(chunk.key, rank, tokens, chunk.blocks, len(own), layout))
            sealed.append(buffer)
        return sealed

    def _check(self, sealed: memoryview, part: ChunkId, chunk: ChunkSpec, payload_bytes: int) -> bytes:
        """Check a part and return its layout. Raises: `Code.CORRUPT`."""
        try:
            return check_part(self._engine, sealed, part, chunk, payload_bytes)
        except CWMError as problem:
            at = chunk.first_block * self._engine.geometry.block_tokens
            raise _damaged(f"the chunk at token {at} fails its check ({problem.context.get('fault')})") from None

    def _check_layouts(self, layouts: Sequence[bytes], file: _File) -> None:
        """Check that each rank has one layout, and that all of them match the passport. Raises: `Code.CORRUPT`."""
        first = layouts[: file.ranks]
        differs = file.layout and hashlib.sha256(b"".join(first)).hexdigest() != file.layout
        if differs or any(layout != first[number % file.ranks] for number, layout in enumerate(layouts)):
            raise _damaged("the layout of its pages does not match its passport")

    def _new_window(self, wanted: _Wanted, order: SaveOrder, header: ArchiveHeader) -> NewWindow:
        return self._window_commit.new_window(
            name=wanted.name,
            passport=wanted.passport,
            description=wanted.description,
            tags=wanted.tags,
            session_id=legal_session_id(f"{_SESSION}{wanted.name}") or _SESSION,
            head=header.head,
            parent=None,
            token_ids=wanted.token_ids,
            chunks=wanted.chunks,
            private=header.private,
            proof=wanted.proof,
            origin=wanted.origin,
            stored=self._window_commit.new_rows(order, lambda chunk: self._engine.stored_bytes(chunk)),
        )


def _proof(header: ArchiveHeader) -> Proof | None:
    proof = header.proof
    return None if proof is None else Proof(proof.token_id, proof.logprob, Micros(proof.taken_at))


def _origin(header: ArchiveHeader, *, resharded: bool) -> Origin:
    return Origin(
        exported_as=header.name,
        frozen_from=header.session_id,
        frozen_at=Micros(header.created_at),
        ranks=header.ranks if resharded else None,
    )


def _damaged(fault: str) -> CWMError:
    return CWMError(Code.CORRUPT, f"the exported file can't be imported: {fault}; have it exported or copied again")
