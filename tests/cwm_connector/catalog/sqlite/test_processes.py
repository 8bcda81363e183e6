"""Two real processes at one catalog, and a writer that is killed with -9 at whatever it is doing."""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cwm_connector.catalog.base import SortBy, WindowQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from tests.cwm_connector.catalog.samples import chain, names, new_window, token_ids
from tests.cwm_connector.catalog.sqlite.writer import names_after, window_of

ROOT = Path(__file__).parents[4]
LOOPS = 24


@contextmanager
def writing(path: Path, first_step: int = 0) -> Iterator["subprocess.Popen[bytes]"]:
    """The writer process, past its first acknowledged step; killed with -9 at the end."""
    command = [sys.executable, "-m", "tests.cwm_connector.catalog.sqlite.writer", str(path), str(first_step)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.read(1) == b"."
            yield process
        finally:
            process.kill()


def acknowledged_after(process: "subprocess.Popen[bytes]") -> int:
    """The steps acknowledged in all, the one read at the start included. The process must be dead."""
    assert process.stdout is not None
    return 1 + len(process.stdout.read())


def assert_whole(catalog: SqliteCatalog, name: str) -> None:
    """`name` is a window or clone of the writer: every byte is what its name says."""
    origin = name if name.startswith("w") else f"w{int(name[1:]) - 1}"
    step = int(origin[1:])
    chunks = chain(f"c{step // 4}", window_of(step)[1])
    assert catalog.chunks_of(name) == tuple(chunks)
    assert catalog.token_ids_of(name) == token_ids(origin, chunks)
    row = catalog.window(name)
    assert (row.size_bytes, row.tags) == (sum(chunk.size_bytes for chunk in chunks), ("torture",))


def newest(catalog: SqliteCatalog, count: int) -> list[str]:
    return [row.name for row in catalog.list_windows(WindowQuery(sort_by=SortBy.CREATED_AT, limit=count)).windows]


@pytest.mark.timeout(60)
def test_what_was_acknowledged_survives_kill_9(path: Path) -> None:
    """After each kill: exactly the acknowledged steps, or those and the one that was under way."""
    choose = random.Random()
    done = 0
    for _ in range(LOOPS):
        with writing(path, done) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(choose.uniform(0, 0.08))
            process.kill()
            process.wait()
            acknowledged = done + acknowledged_after(process)
        with closing(SqliteCatalog.open(path)) as catalog:
            catalog.check_integrity()
            held = names(catalog)
            assert held in (names_after(acknowledged), names_after(acknowledged + 1))
            for name in newest(catalog, 8):
                assert_whole(catalog, name)
            done = acknowledged if held == names_after(acknowledged) else acknowledged + 1
    with closing(SqliteCatalog.open(path)) as catalog:
        for name in names(catalog):
            assert_whole(catalog, name)


def test_a_reader_sees_whole_windows_while_an_engine_writes(path: Path) -> None:
    with writing(path) as process, closing(SqliteCatalog.open_read_only(path)) as reader:
        seen: set[int] = set()
        while len(seen) < 30:
            assert process.poll() is None
            seen.add(reader.totals().windows)
            for name in newest(reader, 4):
                # The first commit of four is deleted again, perhaps between two calls of ours.
                if name.startswith("c") or int(name[1:]) % 4 == 1:
                    assert_whole(reader, name)
            reader.check_integrity()


def test_a_reader_can_open_the_catalog_of_a_killed_engine(path: Path) -> None:
    with writing(path) as process:
        process.kill()
        process.wait()
        acknowledged = acknowledged_after(process)
    assert path.with_name("catalog.sqlite-wal").stat().st_size > 0
    with closing(SqliteCatalog.open_read_only(path)) as reader:
        reader.check_integrity()
        assert names(reader) in (names_after(acknowledged), names_after(acknowledged + 1))
        for name in names(reader):
            assert_whole(reader, name)
        # The engine starts again while the reader is still there, and the reader sees what it writes.
        with closing(SqliteCatalog.open(path)) as engine:
            engine.commit_window(new_window("after", chain("after", 3)))
            assert reader.window("after") == engine.window("after")


def test_a_reader_can_open_the_catalog_of_a_stopped_engine(path: Path) -> None:
    with closing(SqliteCatalog.open(path)) as engine:
        engine.commit_window(new_window("first", chain("a", 3)))
    assert list(path.parent.iterdir()) == [path]
    with closing(SqliteCatalog.open_read_only(path)) as reader:
        assert names(reader) == {"first"}
    with closing(SqliteCatalog.open(path)) as engine:
        engine.commit_window(new_window("second", chain("b", 3)))
        assert names(engine) == {"first", "second"}
