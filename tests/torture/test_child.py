"""child.py: it goes on from what it has seen, not from what might have been."""

from tests.torture.child import _is
from tests.torture.events import Window
from tests.torture.test_judge import W, seen
from tests.torture.texts import Run

TAGGED = Window("w", "s", (Run(100, 40), Run(900, 9)), "text", ("a", "b", "c"))


def test_of_the_states_that_a_kill_left_possible_the_one_that_is_there_is_known() -> None:
    assert [each for each in (W, TAGGED) if _is(each, seen())] == [W]
    assert [each for each in (W, TAGGED) if _is(each, seen(TAGGED))] == [TAGGED]
    assert not _is(W, seen(description="other"))
