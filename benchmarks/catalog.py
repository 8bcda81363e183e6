"""Measure the SQLite catalog with many windows: `python -m benchmarks.catalog [--windows 10000] [--folder DIR]`.

Each session has ten windows of growing length. One session in a hundred has contexts of 100,000 tokens, so that pages
of the largest windows are measured too. Every figure is wall time of the call, disk included. The fsync row shows what
one small durable write costs on this disk. With `--processor-time` the reads count the processor's time only, for a
machine that others use meanwhile.

Exits with 1 if the 99th percentile of a list or a search is above 20 ms.
"""

import argparse
import hashlib
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.timing import over, show_times
from cwm_connector.catalog.base import (
    Binding,
    ChunkRow,
    NewWindow,
    SortBy,
    WindowQuery,
)
from cwm_connector.catalog.session_pages import SessionQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.types import ChunkKey, Micros, TierName

CHUNK_TOKENS = 256
CHUNK_BYTES = 5 << 20
PER_SESSION = 10
LONG = 400
"""How many chunks a context of about 100,000 tokens has."""
LONG_EVERY = 100
TAGS = ("debug", "auth", "experiment", "wip", "production", "january")
WORDS = ("token", "refresh", "cache", "planner", "widget", "login", "failure", "approach", "draft", "final")
SENTENCE = "今天我们讨论了缓存一致性的问题"
"""What one description in ten ends with."""
LIMIT_MS = 20.0
"""For the 99th percentile of each list and each search."""
FIELDS = ("weights", "config", "dtype", "cache_dtype", "layout", "attention_backend", "instruction_set", "parallel")
PASSPORT = {name: hashlib.sha256(name.encode()).hexdigest() for name in FIELDS}
START = Micros(1_767_225_600_000_000)
MINUTE = 60_000_000
_LAST_BIT = bytes(byte & 1 for byte in range(256))


def chain(session: str, length: int) -> list[ChunkRow]:
    """Return the rows of a session's first `length` chunks."""
    return [
        ChunkRow(ChunkKey(hashlib.sha256(f"{session}/{n}".encode()).digest()), CHUNK_TOKENS, CHUNK_BYTES)
        for n in range(length)
    ]


def ids_of(key: ChunkKey) -> bytes:
    """Return the token ids that the chunk stands for, of a vocabulary of 131,072."""
    ids = bytearray(hashlib.shake_128(key).digest(4 * CHUNK_TOKENS))
    ids[2::4] = ids[2::4].translate(_LAST_BIT)
    ids[3::4] = bytes(CHUNK_TOKENS)
    return bytes(ids)


def new_window(name: str, session: str, chunks: list[ChunkRow], new: int, minute: int) -> NewWindow:
    """Return a window over `chunks`, of which the last `new` are not stored yet."""
    choose = random.Random(name)
    tokens = len(chunks) * CHUNK_TOKENS
    return NewWindow(
        name=name,
        description=" ".join([*choose.choices(WORDS, k=12), *([SENTENCE] if choose.random() < 0.1 else [])]),
        tags=[*choose.sample(TAGS, 2), f"project-{choose.randrange(100)}"],
        model=choose.choice(("small", "large")),
        passport=PASSPORT,
        session_id=session,
        head="h1",
        parent=None,
        token_ids=b"".join(ids_of(chunk.key) for chunk in chunks),
        restorable_tokens=tokens,
        chunks=[chunk.key for chunk in chunks],
        stored=chunks[len(chunks) - new :],
        created_at=Micros(START + minute * MINUTE),
    )


def fill(catalog: SqliteCatalog, windows: int) -> None:
    """Commit all windows, session by session."""
    for number in range(windows):
        session, turn = divmod(number, PER_SESSION)
        long = session % LONG_EVERY == 0
        stem, step = (LONG, 8) if long else (4, 4)
        chunks = chain(f"session-{session}", stem + turn * step)
        new = len(chunks) if turn == 0 else step
        catalog.commit_window(new_window(f"window-{session}-{turn}", f"session-{session}", chunks, new, number))


def reads(catalog: SqliteCatalog, windows: int, choose: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the calls that read, by name."""

    def listing(**conditions: Any) -> Callable[[], object]:
        return lambda: catalog.list_windows(WindowQuery(**conditions))

    def project() -> str:
        return f"project-{choose.randrange(100)}"

    def moment() -> Micros:
        return Micros(START + choose.randrange(windows) * MINUTE)

    yield "list, newest 20", listing()
    for sort in SortBy:
        yield f"list, by {sort}, 100 of all", listing(sort_by=sort, limit=100)
    yield "list, by size, last 20 of all", listing(sort_by=SortBy.SIZE, offset=windows - 20)
    yield "list, tag (1 %)", lambda: listing(tags=[project()])()
    yield "list, 2 tags (7 %), by size", listing(tags=["debug", "auth"], sort_by=SortBy.SIZE)
    yield "list, model (50 %), by token count", listing(model="small", sort_by=SortBy.TOKEN_COUNT)
    yield "list, session", lambda: listing(session_id=f"session-{choose.randrange(windows // PER_SESSION)}")()
    yield "list, created after, by name", lambda: listing(created_after=moment(), sort_by=SortBy.NAME)()
    yield "list, tag + model + created before", lambda: listing(tags=["wip"], model="large", created_before=moment())()
    yield "window, by name", lambda: catalog.window(f"window-{choose.randrange(windows // PER_SESSION)}-1")
    yield f"chunks of a window of {LONG}", lambda: catalog.chunks_of("window-0-0")
    keys = [chunk.key for chunk in chain("session-0", LONG)]
    yield f"token ids of a window of {LONG}", lambda: catalog.token_ids_of("window-0-0")
    yield f"which of {LONG} are stored", lambda: catalog.stored(keys)
    yield f"windows with each of {LONG}", lambda: catalog.windows_with(keys)
    yield "next 1,000 chunks of a walk", lambda: catalog.chunks_after(ChunkKey(choose.randbytes(32)), 1000)
    yield "last thaw into a session", lambda: catalog.last_thaw_into(f"session-{choose.randrange(windows)}")
    yield "totals", catalog.totals


def searches(catalog: SqliteCatalog, windows: int, choose: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the searches, by name. Each call of one searches for something else where it can."""

    def search(make: Callable[[], str], **conditions: Any) -> Callable[[], object]:
        return lambda: catalog.list_windows(WindowQuery(search=make(), **conditions))

    def words(count: int) -> Callable[[], str]:
        return lambda: " ".join(choose.sample(WORDS, count))

    everything = {
        "tags": ["debug"],
        "model": "small",
        "created_after": Micros(START + windows // 10 * MINUTE),
        "created_before": Micros(START + windows * 9 // 10 * MINUTE),
    }
    yield "search, 1 letter (all), by size, 100", search(lambda: "w", sort_by=SortBy.SIZE, limit=100)
    yield "search, 2 letters", search(lambda: choose.choice(WORDS)[:2])
    yield "search, 1 Chinese character (10 %), 100", search(lambda: choose.choice(SENTENCE), limit=100)
    yield "search, 1 word (72 %)", search(words(1))
    yield "search, 1 word (72 %), 100 after 3,500", search(words(1), limit=100, offset=3500)
    yield "search, 1 word (all), by name, 100", search(lambda: "window", sort_by=SortBy.NAME, limit=100)
    yield "search, 3 words + tag", search(words(3), tags=["debug"])
    yield "search, 3 words + tag, 100", search(words(3), tags=["debug"], limit=100)
    yield "search, 10 words (1 %), 100", search(lambda: " ".join(WORDS), limit=100)
    for sort in SortBy:
        yield f"search, 2 words + every filter, by {sort}, 100", search(words(2), sort_by=sort, limit=100, **everything)
    yield "search, a name", search(lambda: f"window-{choose.randrange(windows // PER_SESSION)}-3")
    yield "search, nothing", search(lambda: "nothing-of-that")


def walks(catalog: SqliteCatalog) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the calls that read everything, as a demotion or a start does."""
    yield "all chunks", catalog.all_chunks
    yield "sessions, newest 50", lambda: catalog.sessions(SessionQuery())


def writes(catalog: SqliteCatalog, rounds: int, minute: int) -> dict[str, list[float]]:
    """Return the milliseconds of each operation that writes, on windows of `LONG` chunks."""
    times: dict[str, list[float]] = {}

    def timed(what: str, call: Callable[[], object]) -> None:
        begun = time.perf_counter()
        call()
        times.setdefault(what, []).append((time.perf_counter() - begun) * 1000)

    for n in range(rounds):
        session = f"extra-{n}"
        now = Micros(START + (minute + n) * MINUTE)
        first = new_window(f"{session}-a", session, chain(session, LONG), LONG, minute + n)
        second = new_window(f"{session}-b", session, chain(session, LONG + 8), 8, minute + n)
        timed(f"commit, {LONG} new chunks", lambda: catalog.commit_window(first))  # noqa: B023 - called at once
        timed(f"commit, 8 new after {LONG} stored", lambda: catalog.commit_window(second))  # noqa: B023
        timed(f"clone, {LONG} chunks", lambda: catalog.clone_window(first.name, f"{session}-c", None, None, now))  # noqa: B023
        timed("tag", lambda: catalog.tag_window(first.name, ["new"], ["wip"], "another text", now))  # noqa: B023
        moved = [chunk.key for chunk in chain(session, LONG)]
        timed(f"place {LONG} chunks", lambda: catalog.place(TierName.REDIS, moved, []))  # noqa: B023
        binding = Binding(first.name, session, os.urandom(32), now)
        timed("bind (a thaw)", lambda: catalog.bind(binding))  # noqa: B023
        timed("delete a clone", lambda: catalog.delete_window(f"{session}-c"))  # noqa: B023
        timed("delete, all chunks shared", lambda: catalog.delete_window(first.name))  # noqa: B023
        timed(f"delete, {LONG + 8} orphans", lambda: catalog.delete_window(second.name))  # noqa: B023
    return times


def fsync_times(folder: Path, rounds: int) -> list[float]:
    """Return the milliseconds of writing and syncing 8 KiB."""
    times = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(rounds):
            file.write(bytes(8192))
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - begun) * 1000)
    return times


def openings(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the calls that open the catalog.

    An engine checks the whole file when it opens it. A reader checks what its first answer depends on.
    """

    def asked(question: Callable[[SqliteCatalog], object]) -> Callable[[], object]:
        def ask() -> None:
            with closing(SqliteCatalog.open_read_only(path)) as reader:
                question(reader)

        return ask

    yield "open, engine", lambda: SqliteCatalog.open(path).close()
    yield "open, reader", asked(lambda reader: None)
    yield "open and totals, reader", asked(lambda reader: reader.totals())
    yield "open and a window, reader", asked(lambda reader: reader.window("window-0-0"))
    yield "open and list, reader", asked(lambda reader: reader.list_windows(WindowQuery()))
    yield "open and search, reader", asked(lambda reader: reader.list_windows(WindowQuery(search=WORDS[0])))


def measured(
    calls: Iterable[tuple[str, Callable[[], object]]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the milliseconds of each call. The first of each does not count."""
    times: dict[str, list[float]] = {}
    for what, call in calls:
        call()
        for _ in range(rounds):
            begun = clock()
            call()
            times.setdefault(what, []).append((clock() - begun) * 1000)
    return times


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=200, help="how often each operation is timed")
    parser.add_argument("--processor-time", action="store_true", help="time the processor, and not the clock, in reads")
    parser.add_argument("--folder", type=Path, help="the folder for the catalog, which is removed afterwards")
    options = parser.parse_args()
    console = Console()
    show = partial(show_times, console, called="operation", digits=2)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "catalog.sqlite"
        with closing(SqliteCatalog.open(path)) as catalog:
            begun = time.perf_counter()
            fill(catalog, options.windows)
            totals = catalog.totals()
            console.print(
                f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} CPUs. {totals.windows} windows, "
                f"{totals.chunks} chunks, {path.stat().st_size >> 20} MiB, "
                f"filled in {time.perf_counter() - begun:.0f} s."
            )
            choose = random.Random(2)
            clock = time.thread_time if options.processor_time else time.perf_counter
            read = measured(reads(catalog, options.windows, choose), options.rounds, clock)
            show("Reading", read)
            found = measured(searches(catalog, options.windows, choose), options.rounds, clock)
            show("Searching", found)
            show("Reading everything", measured(walks(catalog), options.rounds // 10))
            show("Writing, durable when the call returns", writes(catalog, options.rounds, options.windows))
            show("The disk", {"fsync of 8 KiB": fsync_times(Path(folder), options.rounds)})
            begun = time.perf_counter()
            catalog.check_integrity()
            console.print(f"check_integrity took {time.perf_counter() - begun:.1f} s and found no fault.")
        show("Opening, with a warm page cache", measured(openings(path), options.rounds // 10))
        console.print(f"The load at the end was {os.getloadavg()[0]:.1f}.")
    listed = {what: times for what, times in read.items() if what.startswith("list")}
    failures = over(listed | found, LIMIT_MS)
    for failure in failures:
        console.print(f"FAILED {failure}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
