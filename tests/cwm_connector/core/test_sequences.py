"""Comparison of sequences."""

from hypothesis import given
from hypothesis import strategies as st

from cwm_connector.core.sequences import common_end_length


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_common_end_is_found_whole(end: list[int], one: list[int], other: list[int]) -> None:
    assert common_end_length([*one, 8, *end], [*other, 9, *end]) == len(end)


@given(st.text(), st.text())
def test_a_text_that_is_the_end_of_the_other_is_their_common_end(front: str, end: str) -> None:
    assert common_end_length(front + end, end) == common_end_length(end, front + end) == len(end)
