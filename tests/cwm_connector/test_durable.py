"""durable.py and what relies on it: a store that was just made is still there after a power cut."""

from pathlib import Path

import pytest

from cwm_connector.catalog.sqlite import SqliteCatalog
from tests.support.powercut import compiler, cut_after

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler (cc, gcc): power cuts can't be modelled")

MAKE = """
from cwm_connector.settings import private_folder
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
        tmp_path, MAKE + "from cwm_connector.recovery import pair_store\npair_store(home, chunks)", seed=seed
    )
    marks = [path.read_text() for path in sorted(root.rglob("store.id"))]
    assert len(marks) == 2 and marks[0] == marks[1] != ""


CATALOG = """
import os
from cwm_connector.catalog.sqlite import SqliteCatalog

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
