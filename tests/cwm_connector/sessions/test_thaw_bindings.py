"""thaw_bindings.py: a window is seen by the session and the salt it was thawed into, and by nobody else."""

from array import array

from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.types import ChunkKey
from cwm_connector.sessions.thaw_bindings import MAX_BOUND, BoundWindow, ThawBindings


def window(name: str = "w", ids: range = range(16), usable: int = 4) -> BoundWindow:
    return BoundWindow(name, array("i", ids), (ChunkSpec(ChunkKey(b"k"), 0, 4),), usable)


def test_only_the_bound_session_and_salt_see_the_window() -> None:
    table = ThawBindings()
    table.bind("alice", b"salt-a", window())
    assert [w.name for w in table.of("alice", None)] == ["w"]
    assert [w.name for w in table.of(None, b"salt-a")] == ["w"]
    assert table.of("bob", b"salt-b") == ()
    assert table.of(None, None) == ()


def test_a_deleted_window_is_seen_by_nobody() -> None:
    table = ThawBindings()
    table.bind("alice", b"salt-a", window())
    table.bind("alice", b"salt-b", window("other"))
    table.unbind("w")
    assert [w.name for w in table.of("alice", b"salt-a")] == ["other"]


def test_the_newest_thaw_comes_first_and_old_ones_give_way() -> None:
    table = ThawBindings()
    for number in range(MAX_BOUND + 3):
        table.bind("alice", bytes([number]), window(f"w{number}"))
    names = [w.name for w in table.of("alice", None)]
    assert names[0] == f"w{MAX_BOUND + 2}" and len(names) == MAX_BOUND


def test_a_conversation_without_a_name_is_known_again_by_what_was_thawed_into_it() -> None:
    table = ThawBindings()
    table.bind("anon-1", b"salt-a", window())
    table.bind("alice", b"salt-b", window("hers", range(100, 116)))
    assert table.continued_by([*range(16), 7, 8, 9], 4) == "anon-1"
    assert table.continued_by([*range(12), 7, 8, 9, 10, 11], 4) == "anon-1"  # a template rendered the end otherwise
    assert table.continued_by([*range(8), *range(50, 70)], 4) is None  # another question behind the same beginning
    assert table.continued_by([*range(100, 116), 7], 4) is None  # a session with a name has to be named
    assert table.continued_by([1, 2], 4) is None
    table.unbind("w")
    assert table.continued_by([*range(16), 7], 4) is None


def test_of_several_conversations_without_a_name_the_one_that_is_repeated_furthest_is_meant() -> None:
    table = ThawBindings()
    table.bind("anon-short", b"a", window("short", range(8), 2))
    table.bind("anon-long", b"b", window("long", range(16), 4))
    assert table.continued_by(range(20), 4) == "anon-long"


def test_a_salt_of_a_thaw_tells_its_session() -> None:
    table = ThawBindings()
    table.bind("alice", b"salt-a", window())
    assert table.thawed_into(b"salt-a") == "alice"
    assert table.thawed_into(b"guess") is None


def test_a_request_matches_as_many_whole_blocks_as_it_repeats() -> None:
    ours = window()
    same = array("i", range(16))
    assert ours.common_blocks(same, 4, limit=4) == 4
    assert ours.common_blocks(same, 4, limit=3) == 3
    different = array("i", [*range(9), 99, *range(10, 16)])
    assert ours.common_blocks(different, 4, limit=4) == 2
    ours.usable_blocks = 1
    assert ours.common_blocks(same, 4, limit=4) == 1
