"""thaw_bindings.py: a window is seen by the session and the salt it was thawed into, and by nobody else."""

from array import array
from collections.abc import Callable

import pytest

from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.types import ChunkKey
from cwm_connector.sessions.thaw_bindings import MAX_BOUND, MAX_THAWS, BoundWindow, ThawBindings


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
    assert [w.name for w in table.of("alice", None)] == ["other"]
    assert table.of("alice", b"salt-a") == ()


def test_the_newest_thaw_comes_first_and_old_ones_give_way() -> None:
    table = ThawBindings()
    for number in range(MAX_BOUND + 3):
        table.bind("alice", bytes([number]), window(f"w{number}"))
    names = [w.name for w in table.of("alice", None)]
    assert names[0] == f"w{MAX_BOUND + 2}" and len(names) == MAX_BOUND


def test_an_anonymous_session_is_found_by_the_window_that_was_thawed_into_it() -> None:
    table = ThawBindings()
    table.bind("anon-1", b"salt-a", window())
    table.bind("alice", b"salt-b", window("hers"))
    assert table.anonymous_session_of("w") == "anon-1"
    assert table.anonymous_session_of("hers") is None
    table.unbind("w")
    assert table.anonymous_session_of("w") is None


def test_a_salt_alone_decides() -> None:
    table = ThawBindings()
    table.bind("alice", b"salt-a", window("open"))
    assert table.names_of("alice", b"salt-b") == ()
    assert table.names_of("alice", b"salt-a") == ("open",)


def test_a_private_window_is_bound_to_its_salt_and_to_no_session() -> None:
    table = ThawBindings()
    table.bind("alice", b"salt-a", window("mine"), private=True)
    assert table.of("alice", None) == ()
    assert [each.name for each in table.of("alice", b"salt-a")] == ["mine"]
    assert table.thawed_into(b"salt-a") == "alice"


def test_memory_is_bounded_in_bytes_and_the_names_stay() -> None:
    size = window().n_bytes
    table = ThawBindings(max_bytes=3 * size)
    for number in range(5):
        table.bind("alice", bytes([number]), window(f"w{number}"))
    assert [each.name for each in table.of("alice", None)] == ["w4", "w3", "w2"]
    assert table.names_of("alice", None) == ("w4", "w3", "w2", "w1", "w0")
    assert table.remember(window("w0"), table.changes)
    assert [each.name for each in table.of("alice", None)] == ["w4", "w3", "w0"]
    table.bind("alice", b"big", window("big", range(4096), 1024))
    assert [each.name for each in table.of("alice", None)] == ["big"]  # one that is over the limit alone


def test_thaws_are_bounded_in_number() -> None:
    table = ThawBindings()
    for number in range(MAX_THAWS + 5):
        table.bind(f"s{number}", str(number).encode(), window())
    assert table.names_of("s4", None) == table.names_of(None, b"4") == () and table.thawed_into(b"4") is None
    assert table.names_of("s5", None) == table.names_of(None, b"5") == ("w",)


@pytest.mark.parametrize("withdraw", [lambda table: table.unbind("w"), lambda table: table.clear()])
def test_a_withdrawn_window_is_loaded_by_nobody_who_has_it_already(withdraw: Callable[[ThawBindings], None]) -> None:
    table = ThawBindings(max_bytes=0)
    ours, changes = window(), table.changes
    table.bind("alice", b"salt-a", ours)
    table.bind("bob", b"salt-b", window("other"))  # it pushes the first one out of memory
    assert table.window("w") is None and ours.loadable(3) == 3
    withdraw(table)
    assert ours.loadable(3) == 0
    assert not table.remember(window(), changes) and table.window("w") is None


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
