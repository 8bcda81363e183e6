"""tests/support/powercut: what it leaves of a folder, against what POSIX promises of one."""

import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.support.powercut import compiler, cut_after

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler (cc, gcc): power cuts can't be modelled")

TOOLS = """
import os

def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)

def put(path, text):
    path.write_text(text)
    sync(path)
    sync(path.parent)

"""


def left(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_a_file_is_there_after_an_fsync_of_it_and_of_its_folder(tmp_path: Path) -> None:
    assert left(cut_after(tmp_path, TOOLS + 'put(root / "a", "text")')) == {"a": "text"}


def test_a_file_whose_folder_was_not_synced_is_gone(tmp_path: Path) -> None:
    assert left(cut_after(tmp_path, TOOLS + '(root / "a").write_text("text"); sync(root / "a")')) == {}


def test_a_file_that_was_not_synced_is_empty(tmp_path: Path) -> None:
    assert left(cut_after(tmp_path, TOOLS + '(root / "a").write_text("text"); sync(root)')) == {"a": ""}


def test_a_folder_that_its_parent_does_not_name_yet_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    work = TOOLS + 'folder = root / "x" / "y"; folder.mkdir(parents=True); put(folder / "a", "text"); '
    assert left(cut_after(tmp_path, work + 'sync(root / "x")')) == {}


def test_an_overwrite_without_fsync_is_undone(tmp_path: Path) -> None:
    assert left(cut_after(tmp_path, TOOLS + 'put(root / "a", "old"); (root / "a").write_text("new")')) == {"a": "old"}


def test_a_replacing_rename_is_undone_until_the_folder_is_synced(tmp_path: Path) -> None:
    work = TOOLS + 'put(root / "a", "old"); put(root / "b", "new"); (root / "b").rename(root / "a")\n'
    for number, (more, expected) in enumerate({"": {"a": "old", "b": "new"}, "sync(root)": {"a": "new"}}.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert left(cut_after(folder, work + more)) == expected


def test_a_removed_file_comes_back_even_if_its_inode_was_used_again(tmp_path: Path) -> None:
    work = TOOLS + 'put(root / "a", "old"); (root / "a").unlink(); (root / "b").write_text("new"); sync(root / "b")'
    assert left(cut_after(tmp_path, work)) == {"a": "old"}


def test_by_the_dice_each_change_is_there_or_not_and_nothing_durable_is_touched(tmp_path: Path) -> None:
    work = TOOLS + 'put(root / "safe", "safe"); put(root / "a", "old"); (root / "a").write_text("new")'
    seen = set()
    for seed in range(6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        found = left(cut_after(folder, work, seed=seed))
        assert found["safe"] == "safe"
        seen.add(found["a"])
    assert seen == {"old", "new"}


def test_sqlite_s_own_fsyncs_are_seen(tmp_path: Path) -> None:
    for level, kept in (("FULL", 1), ("OFF", 0)):
        folder = tmp_path / level
        folder.mkdir()
        root = cut_after(
            folder,
            f"""
import sqlite3
db = sqlite3.connect(root / "db", isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE t (x)")
db.execute("PRAGMA synchronous = {level}")
db.execute("INSERT INTO t VALUES (1)")
""",
        )
        db = sqlite3.connect(root / "db")
        assert db.execute("SELECT count(*) FROM t").fetchone() == (kept,)
        db.close()


def test_a_process_without_the_shim_is_refused(tmp_path: Path) -> None:
    work = 'power.__class__(root / "other.so", root, root).begin()'
    with pytest.raises(subprocess.CalledProcessError):
        cut_after(tmp_path, work)
