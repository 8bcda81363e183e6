"""mark.py: which windows are nobody's, so that retention may delete them."""

import pytest

from cwm_connector.operations.auto_freeze.mark import TAG, Mark, Reason, mark_of


@pytest.mark.parametrize("reason", Reason)
def test_a_mark_is_read_back_from_the_description_that_it_makes(reason: Reason) -> None:
    mark = Mark(reason, 12)
    assert mark_of(mark.described("because"), [TAG, "mine"]) == mark


@pytest.mark.parametrize(
    ("description", "tags"),
    [
        (Mark(Reason.IDLE, 1).described("x"), ["wip"]),  # the tag was taken away
        ("keep this one", [TAG]),
        ("kept: auto-freeze (idle, generation 1): x", [TAG]),
        ("auto-freeze (boredom, generation 1): x", [TAG]),
        ("auto-freeze (idle, generation -1): x", [TAG]),
    ],
)
def test_a_window_that_a_user_changed_or_that_only_looks_alike_has_no_mark(description: str, tags: list[str]) -> None:
    assert mark_of(description, tags) is None


def test_a_window_of_a_hook_is_not_replaced_by_one_of_the_engine() -> None:
    engine = {reason.kind for reason in Reason} - {Reason.COMPACTION.value, Reason.SESSION_END.value}
    assert len(engine) == 1
