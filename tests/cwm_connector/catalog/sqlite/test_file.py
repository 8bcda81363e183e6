"""The file itself: who may read it, what makes a commit durable, and files that are not, or not yet, a catalog."""

import os
import resource
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.catalog.base import WindowQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.sqlite.schema import SCHEMA_VERSION
from cwm_connector.core.errors import Code, CWMError
from tests.cwm_connector.catalog.samples import chain, content, names, new_window, totals


def code_of(call) -> Code:
    with pytest.raises(CWMError) as refused:
        call()
    return refused.value.code


def pragma(catalog: SqliteCatalog, name: str) -> Any:
    with catalog._file.reading() as db:
        return db.execute(f"PRAGMA {name}").fetchone()[0]


def test_a_commit_waits_for_the_disk(catalog: SqliteCatalog) -> None:
    assert (pragma(catalog, "journal_mode"), pragma(catalog, "synchronous")) == ("wal", 2)
    assert (pragma(catalog, "foreign_keys"), pragma(catalog, "secure_delete")) == (1, 1)


def test_its_files_are_the_owners_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(SqliteCatalog.open(path)) as catalog:
            catalog.commit_window(new_window("first", chain("a", 1)))
            files = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert files == {"catalog.sqlite": 0o600, "catalog.sqlite-wal": 0o600, "catalog.sqlite-shm": 0o600}


def test_a_file_that_others_could_read_is_closed_to_them(path: Path) -> None:
    SqliteCatalog.open(path).close()
    path.chmod(0o644)
    SqliteCatalog.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_token_ids_are_gone_from_the_file_with_their_window(path: Path) -> None:
    ids = b"a secret of several words, long enough to be found again" * 200
    with closing(SqliteCatalog.open(path)) as catalog:
        catalog.commit_window(new_window("first", [], token_ids=ids))
    assert ids[:56] in path.read_bytes()
    with closing(SqliteCatalog.open(path)) as catalog:
        catalog.delete_window("first")
    assert ids[:56] not in path.read_bytes()


# --- files that are no catalog ---


def test_an_empty_file_becomes_a_catalog(path: Path) -> None:
    path.touch()
    with closing(SqliteCatalog.open(path)) as catalog:
        assert pragma(catalog, "user_version") == SCHEMA_VERSION


@pytest.mark.parametrize("opening", [SqliteCatalog.open, SqliteCatalog.open_read_only])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, opening) -> None:
    garbage = b"not a database, but something of value " * 500
    path.write_bytes(garbage)
    with pytest.raises(CWMError, match="move it away") as refused:
        opening(path)
    assert refused.value.code is Code.CORRUPT
    assert path.read_bytes() == garbage
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("opening", [SqliteCatalog.open, SqliteCatalog.open_read_only])
@pytest.mark.parametrize("statement", ["CREATE TABLE windows (a)", "PRAGMA user_version = 1"])
def test_another_programs_database_is_refused_and_left_alone(path: Path, opening, statement: str) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute(statement)
    before = path.read_bytes()
    with pytest.raises(CWMError, match="another program's database") as refused:
        opening(path)
    assert refused.value.code is Code.CORRUPT
    assert path.read_bytes() == before


@pytest.mark.parametrize("opening", [SqliteCatalog.open, SqliteCatalog.open_read_only])
def test_a_newer_schema_is_refused_and_left_alone(path: Path, opening) -> None:
    SqliteCatalog.open(path).close()
    with closing(sqlite3.connect(path)) as raw:
        raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(CWMError, match="update Context Window Manager") as refused:
        opening(path)
    assert refused.value.code is Code.CORRUPT
    assert refused.value.context == {"found": SCHEMA_VERSION + 1, "known": SCHEMA_VERSION}
    assert path.read_bytes() == before


@pytest.mark.parametrize("opening", [SqliteCatalog.open, SqliteCatalog.open_read_only])
@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version = 0",
        "DROP TRIGGER chunk_gone",
        "CREATE INDEX extra ON windows (head)",
        "DROP INDEX windows_by_model",
        "UPDATE about SET definitions = 1",
        "DELETE FROM about",
    ],
)
def test_tables_that_are_not_as_they_were_made_are_refused_and_left_alone(path: Path, opening, statement: str) -> None:
    with closing(SqliteCatalog.open(path)) as catalog:
        catalog.commit_window(new_window("first", chain("a", 1)))
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute(statement)
    before = path.read_bytes()
    assert code_of(lambda: opening(path)) is Code.CORRUPT
    assert path.read_bytes() == before


def test_a_file_that_was_analysed_or_rewritten_by_sqlite_itself_is_as_before(path: Path) -> None:
    with closing(SqliteCatalog.open(path)) as catalog:
        committed = catalog.commit_window(new_window("first", chain("a", 1)))
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("ANALYZE")
        raw.execute("VACUUM")
    with closing(SqliteCatalog.open(path)) as catalog:
        assert catalog.window("first") == committed


@pytest.mark.parametrize("copy", ["the table", "its index"])
def test_a_text_that_has_other_words_is_noticed_at_the_start(path: Path, copy: str) -> None:
    with closing(SqliteCatalog.open(path)) as catalog:
        catalog.commit_window(new_window("first", chain("a", 1), description="Fresh words"))
    data = path.read_bytes()
    place = data.find(b"fresh-words") if copy == "the table" else data.rfind(b"fresh-words")
    path.write_bytes(data[:place] + b"frosh" + data[place + 5 :])
    assert code_of(lambda: SqliteCatalog.open(path)) is Code.CORRUPT
    with closing(SqliteCatalog.open_read_only(path)) as reader:
        assert code_of(lambda: reader.list_windows(WindowQuery(search="fresh"))) is Code.CORRUPT


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CWMError, match="No such file or directory") as refused:
        SqliteCatalog.open(tmp_path / "none" / "catalog.sqlite")
    assert refused.value.code is Code.WRITE_FAILED


@pytest.mark.parametrize("opening", [SqliteCatalog.open, SqliteCatalog.open_read_only])
def test_a_folder_is_no_catalog_and_keeps_its_mode(path: Path, opening) -> None:
    path.mkdir(mode=0o755)
    assert code_of(lambda: opening(path)) is Code.READ_FAILED
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_damage_is_reported_at_the_start_and_to_a_reader(path: Path) -> None:
    with closing(SqliteCatalog.open(path)) as catalog:
        catalog.commit_window(new_window("first", chain("a", 4)))
        page_bytes = pragma(catalog, "page_size")
    with closing(sqlite3.connect(path)) as raw:
        (root,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'windows'").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    with pytest.raises(CWMError, match="restore it from a backup") as refused:
        SqliteCatalog.open(path)
    assert refused.value.code is Code.CORRUPT
    with closing(SqliteCatalog.open_read_only(path)) as catalog:
        assert code_of(lambda: catalog.window("first")) is Code.CORRUPT
        assert code_of(lambda: catalog.list_windows(WindowQuery())) is Code.CORRUPT
        assert code_of(catalog.check_integrity) is Code.CORRUPT


# --- the disk and other processes in the way ---


def test_a_full_disk_leaves_everything_as_it_was(catalog: SqliteCatalog, path: Path) -> None:
    catalog.commit_window(new_window("first", chain("a", 3)))
    before = content(path)
    limit = pragma(catalog, "page_count")
    pragma(catalog, f"max_page_count = {limit + 3}")
    assert code_of(lambda: catalog.commit_window(new_window("second", chain("b", 400)))) is Code.QUOTA
    assert content(path) == before
    pragma(catalog, "max_page_count = 1000000")
    catalog.commit_window(new_window("second", chain("b", 400)))
    assert names(catalog) == {"first", "second"}


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """The kernel refuses every write beyond `size`; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failing_write_leaves_everything_as_it_was(catalog: SqliteCatalog, path: Path) -> None:
    catalog.commit_window(new_window("first", chain("a", 3)))
    before = content(path)
    log = path.with_name("catalog.sqlite-wal").stat().st_size
    with no_file_longer_than(log + 5000):
        assert code_of(lambda: catalog.commit_window(new_window("second", chain("b", 400)))) is Code.WRITE_FAILED
    assert content(path) == before
    catalog.commit_window(new_window("second", chain("b", 400)))
    assert names(catalog) == {"first", "second"}


def test_a_lock_that_is_held_too_long_is_reported_as_busy(path: Path) -> None:
    with closing(SqliteCatalog.open(path, busy_timeout_s=0.01)) as catalog, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert code_of(lambda: catalog.commit_window(new_window("first", chain("a", 1)))) is Code.BUSY
        other.execute("ROLLBACK")
        catalog.commit_window(new_window("first", chain("a", 1)))


def test_a_torn_end_of_the_log_costs_only_what_was_not_acknowledged(path: Path, tmp_path: Path) -> None:
    """Every cut through the log is what a power cut can leave: the windows are those of the whole commits before it."""
    ends = []
    with closing(SqliteCatalog.open(path)) as catalog:
        pragma(catalog, "wal_autocheckpoint = 0")
        log = path.with_name("catalog.sqlite-wal")
        for n in range(6):
            catalog.commit_window(new_window(f"w{n}", chain("a", 4 + n), stored=chain("a", 4 + n)[3 + n if n else 0 :]))
            ends.append(log.stat().st_size)
        whole, logged = path.read_bytes(), log.read_bytes()
    for cut in range(ends[0], ends[-1] + 1, 1111):
        torn = tmp_path / f"cut-{cut}.sqlite"
        torn.write_bytes(whole)
        torn.with_name(f"{torn.name}-wal").write_bytes(logged[:cut])
        with closing(SqliteCatalog.open(torn)) as catalog:
            catalog.check_integrity()
            assert names(catalog) == {f"w{n}" for n, end in enumerate(ends) if end <= cut}


def test_compacting_gives_back_what_deleted_windows_took(catalog: SqliteCatalog, path: Path) -> None:
    for n in range(4):
        catalog.commit_window(new_window(f"w{n}", chain("a", 100), token_ids=bytes(400_000)))
    for n in range(3):
        catalog.delete_window(f"w{n}")
    kept = catalog.window("w3")
    given_back = catalog.compact()
    assert given_back > 800_000
    assert path.stat().st_size + given_back < 1_800_000
    assert catalog.compact() == 0
    assert catalog.window("w3") == kept
    assert catalog.state() is None


# --- reading only ---


def test_an_absent_catalog_lists_nothing_and_is_not_made(path: Path) -> None:
    with closing(SqliteCatalog.open_read_only(path)) as catalog:
        assert catalog.list_windows(WindowQuery()).total == 0
        assert catalog.totals() == totals(0, 0, 0, 0)
        catalog.check_integrity()
    assert not path.exists()


def test_a_catalog_that_was_never_filled_lists_nothing(path: Path) -> None:
    path.touch()
    with closing(SqliteCatalog.open_read_only(path)) as catalog:
        assert catalog.list_windows(WindowQuery()).total == 0


@pytest.mark.parametrize("exists", [True, False])
def test_a_reader_can_change_nothing(path: Path, exists: bool) -> None:
    if exists:
        SqliteCatalog.open(path).close()
    with closing(SqliteCatalog.open_read_only(path)) as catalog:
        assert code_of(lambda: catalog.commit_window(new_window("first", chain("a", 1)))) is Code.NOT_ALLOWED
        assert code_of(lambda: catalog.delete_window("first")) is Code.NOT_ALLOWED
        assert catalog.list_windows(WindowQuery()).total == 0


def test_a_path_with_characters_that_mean_something_in_an_address_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=rwc#%41" / "catalog.sqlite"
    path.parent.mkdir()
    with closing(SqliteCatalog.open(path)) as catalog:
        catalog.commit_window(new_window("first", chain("a", 1)))
    with closing(SqliteCatalog.open_read_only(path)) as catalog:
        assert names(catalog) == {"first"}
