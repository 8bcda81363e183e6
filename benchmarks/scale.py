"""Measure a catalog with very many windows of 128k tokens: `python -m benchmarks.scale [--windows 100000]`.

It builds the rows (`scale_rows.py`), and measures the size of the file, the start of an engine in miniature over it,
the lists and searches, and the look-ups of a thaw. It fails above the limits. The rows are real, the bytes of the KV
blocks are not there. `--family 1 --common 0` shares nothing, which multiplies the size.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.catalog import TAGS, WORDS, measured
from benchmarks.scale_rows import Builder, Shape, keys_of
from benchmarks.timing import over, show_times
from cwm_connector.catalog.base import OpenWindows, SortBy, WindowQuery
from cwm_connector.catalog.session_pages import SessionQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.sqlite.check import StructureCheck
from cwm_connector.catalog.sqlite.file import SqliteFile
from cwm_connector.core.units import GIB
from tests.support.miniature import Miniature

START_LIMIT_S: Final = 10.0
SIZE_LIMIT_BYTES: Final = 6_000_000_000
LIST_LIMIT_MS: Final = 50.0
LOOKUP_LIMIT_MS: Final = 20.0

Calls = Iterator[tuple[str, Callable[[], object]]]


def lists(catalog: SqliteCatalog, shape: Shape, choose: random.Random) -> Calls:
    """Yield the lists and searches, by name."""

    def listing(make: Callable[[], WindowQuery]) -> Callable[[], object]:
        return lambda: catalog.list_windows(make())

    yield "list, newest 20", listing(lambda: WindowQuery())
    yield "list, by name, 100", listing(lambda: WindowQuery(sort_by=SortBy.NAME, limit=100))
    yield "list, by size, last 20", listing(lambda: WindowQuery(sort_by=SortBy.SIZE, offset=shape.windows - 20))
    yield "list, tag (1 %)", listing(lambda: WindowQuery(tags=[f"project-{choose.randrange(100)}"]))
    yield "list, 2 tags (7 %), by size", listing(lambda: WindowQuery(tags=TAGS[:2], sort_by=SortBy.SIZE))
    yield "list, model (50 %)", listing(lambda: WindowQuery(model="small"))
    yield "list, session", listing(lambda: WindowQuery(session_id=f"session-{choose.randrange(shape.families)}"))
    yield "search, a name", listing(lambda: WindowQuery(search=f"window-{choose.randrange(shape.families)}-3"))
    yield "search, 1 word (72 %)", listing(lambda: WindowQuery(search=choose.choice(WORDS)))
    yield "search, 3 words + tag", listing(lambda: WindowQuery(search=" ".join(WORDS[:3]), tags=[TAGS[0]]))
    yield "search, 1 letter (all)", listing(lambda: WindowQuery(search="w"))
    yield "sessions, newest 50", lambda: catalog.sessions(SessionQuery())
    yield "sessions, 50 after 1,000", lambda: catalog.sessions(SessionQuery(offset=1000))


def lookups(catalog: SqliteCatalog, shape: Shape, choose: random.Random) -> Calls:
    """Yield what a thaw and a request without a thaw look up, by name."""
    last = shape.family - 1

    def thaw() -> None:
        name = f"window-{choose.randrange(shape.families)}-{last}"
        catalog.token_ids_of(name)
        catalog.chunks_of(name)
        catalog.window(name)

    def newest(position: int, windows: OpenWindows) -> None:
        key = keys_of(shape, choose.randrange(shape.families))[position]
        catalog.is_open(key, windows)
        catalog.open_windows_with(key, windows, 8)

    yield "window, chunks and 131,072 token ids", thaw
    yield "windows with a chunk of all", partial(newest, 0, OpenWindows())
    yield "windows with a chunk of a family", partial(newest, shape.length(0) - 1, OpenWindows())
    yield "windows of a session with a chunk of all", partial(newest, 0, OpenWindows(session_id="session-1"))
    yield "last thaw into a session", lambda: catalog.last_thaw_into(f"session-{choose.randrange(shape.families)}")


async def start_s(home: Path) -> float:
    """Return the seconds until an engine over this home can be called. What it goes on to check is cut short then."""
    began = time.perf_counter()
    engine = await Miniature.started(home)
    took = time.perf_counter() - began
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    engine.close()
    return took


def check_s(path: Path) -> float:
    """Return the seconds that the whole check of the file's structure takes. Raises RuntimeError for damage."""
    began = time.perf_counter()
    fault = StructureCheck(path).run()
    if fault is not None:
        raise RuntimeError(fault)
    return time.perf_counter() - began


def main() -> None:
    """Run the benchmark, print its tables, and exit with 1 if a figure is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--family", type=int, default=20, help="windows that continue each other")
    parser.add_argument("--new", type=int, default=4, help="chunks of 256 tokens that each of them adds")
    parser.add_argument("--common", type=int, default=64, help="chunks with which all families begin")
    parser.add_argument("--rounds", type=int, default=100, help="how often each call is timed")
    parser.add_argument("--processor-time", action="store_true", help="time the processor, and not the clock, of calls")
    parser.add_argument("--folder", type=Path, help="where the home is made, which is removed afterwards")
    parser.add_argument("--home", type=Path, help="a home that is kept, and is not built again if it has a catalog")
    options = parser.parse_args()
    shape = Shape(options.windows // options.family * options.family, options.family, options.new, options.common)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        clock = time.thread_time if options.processor_time else time.perf_counter
        failures = run(options.home or Path(folder), shape, options.rounds, clock)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    sys.exit(bool(failures))


def run(home: Path, shape: Shape, rounds: int, clock: Callable[[], float]) -> list[str]:
    """Build and measure. Return what is above its limit."""
    console = Console()
    path = home / "catalog.sqlite"
    if not path.exists():
        (home / "chunks").mkdir(parents=True)
        began = time.perf_counter()
        with closing(SqliteFile.open(path)) as file:
            Builder(file, shape).build()
        console.print(f"built in {time.perf_counter() - began:.0f} s")
    size = path.stat().st_size
    failures = [f"the catalog has {size} bytes"] if size > SIZE_LIMIT_BYTES else []
    choose = random.Random(2)
    with closing(SqliteCatalog.open(path)) as catalog:
        totals = catalog.totals()
        console.print(
            f"{totals.windows} windows in families of {shape.family}, {totals.chunks} chunks, {size / GIB:.2f} GiB, "
            f"{size / totals.windows / 1024:.1f} KiB for each window; {os.cpu_count()} CPUs, "
            f"load {os.getloadavg()[0]:.1f}"
        )
        listed = measured(lists(catalog, shape, choose), rounds, clock)
        looked_up = measured(lookups(catalog, shape, choose), rounds, clock)
    show_times(console, "Lists and searches", listed, digits=2)
    show_times(console, "Look-ups", looked_up, digits=2)
    started = asyncio.run(start_s(home))
    console.print(f"an engine starts in {started:.1f} s; the whole check of the file takes {check_s(path):.0f} s more")
    failures += over(listed, LIST_LIMIT_MS) + over(looked_up, LOOKUP_LIMIT_MS)
    return [*failures, f"the start took {started:.1f} s"] if started > START_LIMIT_S else failures


if __name__ == "__main__":
    main()
