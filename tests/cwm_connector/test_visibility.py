"""visibility.py: a window is seen by the session and the salt it was thawed into, and by nobody else."""

from array import array

from cwm_connector.identity import ChunkSpec
from cwm_connector.terms import ChunkKey
from cwm_connector.visibility import MAX_BOUND, BoundWindow, Visibility


def window(name: str = "w", ids: range = range(16), usable: int = 4) -> BoundWindow:
    return BoundWindow(name, array("i", ids), (ChunkSpec(ChunkKey(b"k"), 0, 4),), usable)


def test_only_the_bound_session_and_salt_see_the_window() -> None:
    table = Visibility()
    table.bind("alice", b"salt-a", window())
    assert [w.name for w in table.of("alice", None)] == ["w"]
    assert [w.name for w in table.of(None, b"salt-a")] == ["w"]
    assert table.of("bob", b"salt-b") == ()
    assert table.of(None, None) == ()


def test_a_deleted_window_is_seen_by_nobody() -> None:
    table = Visibility()
    table.bind("alice", b"salt-a", window())
    table.bind("alice", b"salt-b", window("other"))
    table.unbind("w")
    assert [w.name for w in table.of("alice", b"salt-a")] == ["other"]


def test_the_newest_thaw_comes_first_and_old_ones_give_way() -> None:
    table = Visibility()
    for number in range(MAX_BOUND + 3):
        table.bind("alice", bytes([number]), window(f"w{number}"))
    names = [w.name for w in table.of("alice", None)]
    assert names[0] == f"w{MAX_BOUND + 2}" and len(names) == MAX_BOUND


def test_a_salt_of_a_thaw_tells_its_session() -> None:
    table = Visibility()
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
