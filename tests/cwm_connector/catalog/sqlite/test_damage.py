"""Damage to the file: whatever bit flips, an answer is the one of before, or says CWM-4004. It is never another one."""

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.catalog.base import Binding, Proof, SortBy, WindowPage, WindowQuery
from cwm_connector.catalog.session_pages import SessionQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import TierName
from tests.cwm_connector.catalog.samples import at, chain, content, new_window

FLIPS = 400
"""For each seed: 3,200 in all, half of them for the engine and half for a reader."""
SEEDS = range(8)
KEYS = [row.key for name in "abc" for row in chain(name, 7)]
WINDOWS = ("first", "second", "third", "short", "copy")

Question = Callable[[SqliteCatalog], Any]


def fill(catalog: SqliteCatalog) -> None:
    """Something of everything: shared and unreferenced chunks, both tiers and none, a clone, thaws, deleted rows."""
    first = new_window("first", chain("a", 4), tags=["debug", "auth"], description="planner of the widget cache")
    catalog.commit_window(first)
    longer = chain("a", 6)
    second = new_window("second", longer, longer[4:], parent="first", model="large", tags=["wip"], created_at=at(2))
    catalog.commit_window(second)
    catalog.commit_window(new_window("third", chain("b", 3), tags=["wip", "debug"], session_id="bob"))
    catalog.commit_window(new_window("short", [], session_id="carol", description="naïve", created_at=at(9)))
    catalog.clone_window("second", "copy", "a copy", None, at(4))
    catalog.commit_window(new_window("gone", chain("c", 30), session_id="bob", created_at=at(5)))
    catalog.delete_window("gone", keep=[chain("c", 1)[0].key])
    for n in range(5):
        catalog.bind(Binding(("first", "copy")[n % 2], f"thawed-{n % 3}", bytes([n]) * 32, at(20 + n)))
    catalog.place(TierName.REDIS, KEYS[:3], [])
    catalog.place(TierName.DISK, [], KEYS[1:2])
    catalog.note("cursor", "at the third")
    for n, name in enumerate(("first", "third")):
        catalog.add_proof(name, Proof(token_id=70 + n, logprob=-0.3, taken_at=at(30 + n)))


def listing(**conditions: Any) -> Question:
    return lambda catalog: catalog.list_windows(WindowQuery(**conditions))


def absent(catalog: SqliteCatalog) -> bool:
    try:
        catalog.window("gone")
    except CWMError as refused:
        if refused.code is Code.WINDOW_NOT_FOUND:
            return True
        raise
    return False


QUESTIONS: dict[str, Question] = {
    "newest": listing(),
    **{f"by {sort}": listing(sort_by=sort, descending=False, limit=3) for sort in SortBy},
    "tags": listing(tags=["wip", "debug"]),
    "model": listing(model="large"),
    "session": listing(session_id="session-1"),
    "between": listing(created_after=at(1), created_before=at(5)),
    "search": listing(search="widget"),
    "search of a beginning": listing(search="w"),
    "search in tags": listing(search="naive"),
    "absent": absent,
    "bindings": lambda catalog: catalog.bindings(),
    "last thaw": lambda catalog: (catalog.last_thaw_into("thawed-1"), catalog.last_thaw_into("nobody")),
    "one session": lambda catalog: (catalog.session("session-1"), catalog.session("nobody")),
    "sessions": lambda catalog: catalog.sessions(SessionQuery()),
    "totals": lambda catalog: catalog.totals(),
    "chunks": lambda catalog: catalog.all_chunks(),
    "walk": lambda catalog: (catalog.chunks_after(None, 5), catalog.chunks_after(KEYS[3], 50)),
    "use": lambda catalog: catalog.uses_after(None, 100),
    "holders": lambda catalog: catalog.windows_with(KEYS),
    "stored": lambda catalog: catalog.stored(KEYS),
    "notes": lambda catalog: (catalog.noted("cursor"), catalog.noted("none")),
    **{f"window {name}": partial(SqliteCatalog.window, name=name) for name in WINDOWS},
    **{f"chunks of {name}": partial(SqliteCatalog.chunks_of, name=name) for name in WINDOWS},
    **{f"tokens of {name}": partial(SqliteCatalog.token_ids_of, name=name) for name in WINDOWS},
    **{f"proof of {name}": partial(SqliteCatalog.proof_of, name=name) for name in WINDOWS},
    **{f"children of {name}": partial(SqliteCatalog.children, name=name) for name in WINDOWS},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    """The file of an engine that has stopped, and every answer that it gives."""
    path = tmp_path_factory.mktemp("whole") / "catalog.sqlite"
    with closing(SqliteCatalog.open(path)) as catalog:
        fill(catalog)
        catalog.check_integrity()
        answers = {what: question(catalog) for what, question in QUESTIONS.items()}
    with closing(SqliteCatalog.open_read_only(path)) as reader:
        assert answers == {what: question(reader) for what, question in QUESTIONS.items()}
    return path.read_bytes(), answers


def same(answer: Any, before: Any) -> bool:
    """A listing may tell of a damaged window its name alone."""
    if not isinstance(answer, WindowPage):
        return bool(answer == before)
    return answer.total == before.total and [row.name for row in answer.windows] == [row.name for row in before.windows]


def told_apart(answer: Any, before: Any) -> bool:
    """Whether a listing says of each window that differs that it is damaged."""
    if not isinstance(answer, WindowPage):
        return True
    return all(row == was or row.damaged for row, was in zip(answer.windows, before.windows, strict=True))


def ask_everything(opening: Callable[[Path], SqliteCatalog], path: Path, answers: dict[str, Any]) -> bool:
    """Whether everything was as before; what was not, was refused."""
    try:
        catalog = opening(path)
    except CWMError as refused:
        # A version of the file's format that only allows reading is refused as such.
        assert refused.code in (Code.CORRUPT, Code.NOT_ALLOWED), refused
        return False
    unharmed = True
    with closing(catalog):
        for what, question in QUESTIONS.items():
            try:
                answer = question(catalog)
            except CWMError as refused:
                assert refused.code is Code.CORRUPT, (what, refused)
                unharmed = False
                continue
            assert same(answer, answers[what]), (what, answer)
            assert told_apart(answer, answers[what]), (what, answer)
            unharmed = unharmed and answer == answers[what]
    return unharmed


def rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for tail in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + tail).unlink(missing_ok=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flipped_bit_changes_no_answer(path: Path, whole: tuple[bytes, dict[str, Any]], seed: int) -> None:
    """Anywhere in the file; more often where something is written, since most of a small catalog is empty."""
    data, answers = whole
    written = [place for place, byte in enumerate(data) if byte]
    choose = random.Random(seed)
    caught = 0
    for n in range(FLIPS):
        place = choose.choice(written) if n % 4 else choose.randrange(len(data))
        bit = choose.randrange(8)
        rewrite(path, data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        opening = SqliteCatalog.open if n // 4 % 2 else SqliteCatalog.open_read_only
        try:
            caught += not ask_everything(opening, path, answers)
        except Exception as fault:
            raise AssertionError(f"bit {bit} of byte {place}, {opening.__name__}: {fault}") from fault
    assert caught > FLIPS // 2, "damage that nothing notices was not looked for where it matters"


def lead_elsewhere(path: Path, index: str, key: bytes, row: int, other: int) -> None:
    """Makes the entry of `key` in an index, in the file, lead to the row `other`, which is whole."""
    with closing(sqlite3.connect(path)) as raw:
        (root,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (index,)).fetchone()
        (size,) = raw.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    # An entry ends with the row's id; 1 would be stored in no byte at all.
    place = data.index(key, (root - 1) * size, root * size) + len(key)
    assert data[place] == row
    data[place] = other
    with path.open("r+b") as file:
        file.write(data)


@pytest.mark.parametrize("opening", [SqliteCatalog.open, SqliteCatalog.open_read_only])
def test_an_index_that_leads_to_another_window_gives_no_wrong_tokens(path: Path, opening: Any) -> None:
    with closing(SqliteCatalog.open(path)) as catalog:
        fill(catalog)
    lead_elsewhere(path, "sqlite_autoindex_windows_1", b"third", 3, 2)
    with pytest.raises(CWMError) as refused, closing(opening(path)) as catalog:
        catalog.token_ids_of("third")
    assert refused.value.code is Code.CORRUPT


@pytest.mark.parametrize("opening", [SqliteCatalog.open, SqliteCatalog.open_read_only])
def test_a_file_that_was_cut_short_is_refused(path: Path, whole: tuple[bytes, dict[str, Any]], opening: Any) -> None:
    data, answers = whole
    for kept in (1, 99, 100, 511, 512, 4095, 4096, *range(5000, len(data) - 4096, 9973), len(data) - 4096):
        rewrite(path, data[:kept])
        assert ask_everything(opening, path, answers) is False, kept
    # What is missing of the last page reads as zeros, which it may have been.
    rewrite(path, data[:-1])
    ask_everything(opening, path, answers)


@pytest.mark.parametrize("more", [b"\0", b"\xff" * 4096, b"x" * 100_000])
@pytest.mark.parametrize("opening", [SqliteCatalog.open, SqliteCatalog.open_read_only])
def test_what_is_behind_the_end_of_the_file_changes_nothing(
    path: Path, whole: tuple[bytes, dict[str, Any]], opening: Any, more: bytes
) -> None:
    data, answers = whole
    rewrite(path, data + more)
    assert ask_everything(opening, path, answers) is True


def test_the_catalog_of_another_store_is_refused_and_left_alone(path: Path) -> None:
    with closing(SqliteCatalog.open(path, home_id="theirs")) as catalog:
        fill(catalog)
    before = path.read_bytes()
    with pytest.raises(CWMError, match="another CWM_HOME") as refused:
        SqliteCatalog.open(path, home_id="ours")
    assert refused.value.code is Code.CORRUPT
    assert path.read_bytes() == before
    SqliteCatalog.open(path, home_id="theirs").close()
    SqliteCatalog.open(path).close()


def test_a_catalog_that_was_not_told_its_store_is_the_first_ones(path: Path) -> None:
    SqliteCatalog.open(path).close()
    SqliteCatalog.open(path, home_id="ours").close()
    with pytest.raises(CWMError, match="another CWM_HOME"):
        SqliteCatalog.open(path, home_id="theirs")


# --- rows that do not pass ---


@pytest.fixture
def filled(path: Path) -> Iterator[SqliteCatalog]:
    """An engine's catalog in which a row is then damaged, while it is open."""
    with closing(SqliteCatalog.open(path)) as catalog:
        fill(catalog)
        yield catalog


def damage(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        assert raw.execute(statement).rowcount


def forget_what_was_read(catalog: SqliteCatalog) -> None:
    """What is asked from now on is read from the file."""
    with catalog._file.reading() as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        db.execute("PRAGMA shrink_memory")


def refusal(call: Callable[[], object]) -> CWMError:
    with pytest.raises(CWMError) as refused:
        call()
    assert refused.value.code is Code.CORRUPT
    return refused.value


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE windows SET head = 'h2' WHERE name = 'first'",
        "UPDATE windows SET updated_at = updated_at + 1 WHERE name = 'first'",
        "UPDATE window_tags SET tag = 'denug' WHERE tag = 'debug' AND window_id = 1",
        "DELETE FROM window_tags WHERE tag = 'debug' AND window_id = 1",
        "UPDATE snapshots SET passport = replace(passport, '1234', '1235') WHERE id = 1",
        "UPDATE snapshots SET restorable_tokens = 512 WHERE id = 1",
        "UPDATE snapshots SET own_bytes = 1 WHERE id = 1",
        "UPDATE windows SET digest = digest + 1 WHERE name = 'first'",
        "DELETE FROM snapshots WHERE id = 1",
    ],
)
def test_a_window_that_does_not_pass_is_named_and_listed_by_its_name_alone(
    filled: SqliteCatalog, path: Path, statement: str
) -> None:
    before = filled.list_windows(WindowQuery()).windows
    damage(path, statement)
    assert refusal(lambda: filled.window("first")).context == {"window": "first"}
    after = filled.list_windows(WindowQuery()).windows
    assert [row.name for row in after] == [row.name for row in before]
    assert [row.name for row in after if row.damaged] == ["first"]
    (row,) = (row for row in after if row.damaged)
    assert (row.description, row.tags, row.passport, row.token_count, row.size_bytes) == ("", (), {}, 0, 0)
    assert [row for row in after if not row.damaged] == [row for row in before if row.name != "first"]


@pytest.mark.parametrize(
    ("statement", "calls"),
    [
        ("UPDATE snapshot_tokens SET token_ids = zeroblob(length(token_ids))", [lambda c: c.token_ids_of("first")]),
        ("DELETE FROM snapshot_tokens", [lambda c: c.token_ids_of("first")]),
        ("UPDATE chunk_tokens SET token_ids = x'03' WHERE chunk_id = 2", [lambda c: c.token_ids_of("first")]),
        ("UPDATE chunk_tokens SET token_ids = 'text' WHERE chunk_id = 2", [lambda c: c.token_ids_of("first")]),
        ("UPDATE chunk_tokens SET token_ids = x'' WHERE chunk_id = 2", [lambda c: c.token_ids_of("first")]),
        ("DELETE FROM chunk_tokens WHERE chunk_id = 2", [lambda c: c.token_ids_of("first")]),
        ("UPDATE snapshot_chunks SET chunk_id = 7 WHERE chunk_id = 2", [lambda c: c.chunks_of("first")]),
        ("UPDATE snapshot_chunks SET position = 9 WHERE position = 0", [lambda c: c.chunks_of("first")]),
        ("DELETE FROM snapshot_chunks WHERE position = 3", [lambda c: c.chunks_of("first")]),
        *(
            (
                f"UPDATE chunks SET {field} WHERE id = 1",
                [
                    lambda c: c.chunks_of("first"),
                    lambda c: c.stored(KEYS[:1]),
                    lambda c: c.all_chunks(),
                    lambda c: c.place(TierName.REDIS, [], KEYS[:1]),
                    lambda c: c.commit_window(new_window("new", chain("a", 1), [])),
                    lambda c: [c.delete_window(name) for name in WINDOWS],
                ],
            )
            for field in ("size_bytes = 1", "tokens = 1", "claim = 'x'", "refs = 1", "owners = 1", "tiers = 0")
        ),
        (
            "UPDATE bindings SET salt_hash = zeroblob(32)",
            [lambda c: c.bindings(), lambda c: c.last_thaw_into("thawed-1")],
        ),
        ("UPDATE sessions SET token_count = 1", [lambda c: c.sessions(SessionQuery()), lambda c: c.session("bob")]),
        ("UPDATE snapshots SET origin = '{}'", [lambda c: c.window("first"), lambda c: c.chunks_of("first")]),
        ("UPDATE proofs SET logprob = -0.4", [lambda c: c.proof_of("first")]),
        ("UPDATE notes SET note = 'elsewhere'", [lambda c: c.noted("cursor")]),
        (
            "UPDATE totals SET size_bytes = 0",
            [lambda c: c.totals(), lambda c: c.commit_window(new_window("new", chain("d", 1)))],
        ),
    ],
)
def test_what_does_not_pass_is_never_given_nor_built_upon(
    filled: SqliteCatalog, path: Path, statement: str, calls: list[Question]
) -> None:
    damage(path, statement)
    before = content(path)
    for call in calls:
        refusal(lambda: call(filled))  # noqa: B023 - called at once
    assert refusal(filled.check_integrity).context["fault"]
    # A deletion of windows that do not hold the damaged chunk may have gone through before the one that was refused.
    if len(calls) < 6:
        assert content(path) == before


def test_a_damaged_window_can_be_deleted(filled: SqliteCatalog, path: Path) -> None:
    damage(path, "UPDATE windows SET description = 'x' WHERE name = 'third'")
    assert filled.delete_window("third").orphans == tuple(chain("b", 3))
    filled.check_integrity()


def test_a_window_that_may_hold_anything_is_not_deleted(filled: SqliteCatalog, path: Path) -> None:
    """Its snapshot's chunks would lose a reference that was never theirs."""
    damage(path, "UPDATE snapshots SET chunks_digest = 1 WHERE id = 3")
    before = content(path)
    refusal(lambda: filled.delete_window("third"))
    assert content(path) == before


def test_damage_to_one_window_keeps_no_other_from_being_frozen(filled: SqliteCatalog, path: Path) -> None:
    """`third` loses its claim to be the only holder of its chunks: its damaged record is not sealed anew by that."""
    damage(path, "UPDATE snapshots SET passport = '{}' WHERE id = 3")
    filled.commit_window(new_window("sharing", chain("b", 3), stored=[], session_id="dora"))
    assert filled.window("sharing").unique_bytes == 0
    refusal(lambda: filled.window("third"))


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.window("third"),
        lambda c: c.chunks_of("third"),
        lambda c: c.token_ids_of("third"),
        lambda c: c.clone_window("third", "new", None, None, at(1)),
        lambda c: c.tag_window("third", ["new"], [], None, at(1)),
        lambda c: c.bind(Binding("third", "bob", bytes(32), at(1))),
        lambda c: c.delete_window("third"),
    ],
)
def test_a_running_engine_is_led_to_no_other_window(filled: SqliteCatalog, path: Path, call: Question) -> None:
    forget_what_was_read(filled)
    lead_elsewhere(path, "sqlite_autoindex_windows_1", b"third", 3, 2)
    assert refusal(lambda: call(filled)).context == {"window": "third"}


@pytest.mark.parametrize("call", [lambda c: c.stored(KEYS[1:2]), lambda c: c.place(TierName.DISK, KEYS[1:2], [])])
def test_a_running_engine_is_led_to_no_other_chunk(filled: SqliteCatalog, path: Path, call: Question) -> None:
    forget_what_was_read(filled)
    lead_elsewhere(path, "sqlite_autoindex_chunks_1", KEYS[1], 2, 3)
    refusal(lambda: call(filled))


def test_a_reader_lists_a_damaged_window_for_the_words_that_it_had(filled: SqliteCatalog, path: Path) -> None:
    damage(path, "UPDATE windows SET description = 'other text' WHERE name = 'first'")
    with closing(SqliteCatalog.open_read_only(path)) as reader:
        (row,) = reader.list_windows(WindowQuery(search="widget")).windows
        assert (row.name, row.damaged) == ("first", True)
        assert reader.list_windows(WindowQuery(search="other")).total == 0
