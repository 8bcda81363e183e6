"""`core.fsync` and the code that relies on it: a new home is still there after a power cut."""

from pathlib import Path

import pytest

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from tests.support.powercut import compiler, cut_after

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="no C compiler (cc, gcc): power cuts can't be modelled"),
    pytest.mark.timeout(300),  # an engine's parts are imported in a process that follows every write
]

MAKE = """
from cwm_connector.core.folders import private_folder
home, chunks = root / "some" / "where" / "home", root / "else" / "where" / "chunks"
private_folder(home, "CWM_HOME")
private_folder(chunks, "CWM_DISK_PATH")
"""


def test_a_new_store_s_folders_survive_a_power_cut(tmp_path: Path) -> None:
    root = cut_after(tmp_path, MAKE)
    assert (root / "some" / "where" / "home").is_dir() and (root / "else" / "where" / "chunks").is_dir()


def test_a_folder_that_a_killed_start_made_is_made_durable_by_the_next(tmp_path: Path) -> None:
    root = cut_after(tmp_path, '(root / "some" / "where" / "home").mkdir(parents=True)' + MAKE)
    assert (root / "some" / "where" / "home").is_dir()


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_the_marks_that_pair_home_and_chunks_survive_whole(tmp_path: Path, seed: int | None) -> None:
    root = cut_after(
        tmp_path, MAKE + "from cwm_connector.store.pairing import pair_store\npair_store(home, chunks)", seed=seed
    )
    marks = [path.read_text() for path in sorted(root.rglob("store.id"))]
    assert len(marks) == 2 and marks[0] == marks[1] != ""


CATALOG = """
import os
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog

def in_a_process_that_is_killed(work):
    child = os.fork()
    if child == 0:
        work(SqliteCatalog.open(root / "catalog.sqlite"))
        os._exit(0)
    os.waitpid(child, 0)

def killed_before_the_fsync(catalog):
    catalog._file._connection.execute("PRAGMA synchronous = OFF")
    catalog.note("name", "new")

in_a_process_that_is_killed(lambda catalog: catalog.note("name", "old"))
in_a_process_that_is_killed(killed_before_the_fsync)
"""


def noted(root: Path) -> str | None:
    catalog = SqliteCatalog.open(root / "catalog.sqlite")
    text = catalog.noted("name")
    catalog.close()
    return text


def test_what_a_start_reads_from_a_killed_engine_s_log_is_durable_before_anything_is_done_about_it(
    tmp_path: Path,
) -> None:
    """Else a start removes the bytes of a deletion, and a power cut takes back the deletion."""
    for start, left in (("", "old"), ("started = SqliteCatalog.open(root / 'catalog.sqlite')", "new")):
        folder = tmp_path / left
        folder.mkdir()
        assert noted(cut_after(folder, f"{CATALOG}\n{start}")) == left


FOUND = """
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from tests.support.recovery import recover
from cwm_connector.core.folders import private_folder
from cwm_connector.core.types import TierName
from cwm_connector.tiers.disk.tier import DiskTier
from tests.cwm_connector.operations.start.test_recovery import MINE, key, put, window

disk = DiskTier(private_folder(root / "chunks", "CWM_DISK_PATH"))
catalog = SqliteCatalog.open(root / "catalog.sqlite")
catalog.commit_window(window("w", 1))
catalog.place(TierName.DISK, (), [key(1)])  # its copy was lost
disk.sync = lambda: None
put(disk, 1)  # and written anew by an engine that was killed before it could make the name durable
del disk.sync
"""


def test_a_chunk_that_a_start_found_and_recorded_survives_a_power_cut(tmp_path: Path) -> None:
    """Else a freeze that relies on the record is acknowledged, and the chunk is gone."""
    for start, left in (("", 0), ("recover(catalog, [disk], MINE)", 1)):
        folder = tmp_path / str(left)
        folder.mkdir()
        root = cut_after(folder, f"{FOUND}\n{start}")
        assert len(list((root / "chunks").glob("cwm@*"))) == left


COPIED = """
import asyncio
from cwm_connector.core.types import TierName
from tests.support.miniature import Miniature
from tests.support.redis_server import redis_server
from tests.support.stores import demote, frozen, text

async def restored(url):
    engine = await Miniature.started(root / "home", redis_url=url)
    await frozen(engine, "w", text(1))
    await demote(engine, "w")
    disk, tiering = engine.disk, engine.operations.tiering
    disk.sync()
    keys = [row.key for row in await engine.catalog.run(lambda catalog: catalog.chunks_of("w"))]
    disk.sync = lambda: None  # copies are written, and never made durable, nor recorded
    await tiering.restore(keys)
    await tiering._record(TierName.DISK, went=keys)
    if again:
        del disk.sync
        await tiering.restore(keys)
    engine.close()

with redis_server(append_fsync="always") as server:
    asyncio.run(restored(server.url))
"""


def test_a_copy_that_was_there_already_is_made_durable_before_it_is_recorded(tmp_path: Path, server: object) -> None:
    """`server` only skips this where no Redis can run."""
    for again, left in ((False, 0), (True, 3)):
        folder = tmp_path / str(again)
        folder.mkdir()
        root = cut_after(folder, f"again = {again}\n{COPIED}")
        assert len(list((root / "home" / "chunks").glob("cwm@*"))) == left
