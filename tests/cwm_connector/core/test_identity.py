"""identity.py: same content, same key; anything else, another key."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwm_connector.core.identity import Geometry, Passport, chunk_specs, specs_of

PASSPORT = Passport({"weights": "w1", "dtype": "bf16"})
GEOMETRY = Geometry.of(block_tokens=4, chunk_tokens=8)

tokens = st.lists(st.integers(0, 2**31 - 1), max_size=60).map(lambda ids: array("i", ids))


@given(tokens)
def test_chunks_cover_every_full_block_once_in_order(ids: array) -> None:
    specs = chunk_specs(PASSPORT, GEOMETRY, ids)
    assert [block for spec in specs for block in range(spec.first_block, spec.end_block)] == list(range(len(ids) // 4))


@given(tokens, tokens)
def test_a_longer_sequence_shares_the_whole_chunks_of_its_prefix(prefix: array, rest: array) -> None:
    whole = len(prefix) // 8
    assert [s.key for s in chunk_specs(PASSPORT, GEOMETRY, prefix)][:whole] == [
        s.key for s in chunk_specs(PASSPORT, GEOMETRY, prefix + rest)
    ][:whole]


@given(tokens.filter(lambda ids: len(ids) >= 4), st.data())
def test_one_other_token_changes_its_chunk_and_all_after_it(ids: array, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(ids) // 4 * 4 - 1))
    other = array("i", ids)
    other[at] ^= 1
    pairs = zip(chunk_specs(PASSPORT, GEOMETRY, ids), chunk_specs(PASSPORT, GEOMETRY, other), strict=True)
    assert [a.key == b.key for a, b in pairs] == [
        spec.end_block * 4 <= at for spec in chunk_specs(PASSPORT, GEOMETRY, ids)
    ]


def test_other_weights_give_other_keys() -> None:
    ids = array("i", range(8))
    theirs = Passport({**PASSPORT.fields, "weights": "w2"})
    assert chunk_specs(PASSPORT, GEOMETRY, ids)[0].key != chunk_specs(theirs, GEOMETRY, ids)[0].key


def test_keys_are_the_same_in_every_version_of_this_program() -> None:
    """A key that moved would orphan every window of every user: change FORMAT_VERSION with it."""
    key = chunk_specs(PASSPORT, GEOMETRY, array("i", range(8)))[0].key
    assert key.hex() == "213d6b0446fe4075ae4c4ad24b543fb370bc76c9d4d670ef295a6ed8375ed69f"


def test_a_window_s_chunks_are_found_again_from_the_catalog_s_rows() -> None:
    specs = chunk_specs(PASSPORT, GEOMETRY, array("i", range(22)))
    assert specs_of(GEOMETRY, [s.key for s in specs], [s.blocks * 4 for s in specs]) == specs


@pytest.mark.parametrize(("block", "chunk", "blocks"), [(128, 256, 2), (16, 256, 16), (128, 100, 1), (16, 250, 16)])
def test_chunks_are_whole_blocks_of_at_least_the_size_asked_for(block: int, chunk: int, blocks: int) -> None:
    assert Geometry.of(block, chunk).blocks_per_chunk == blocks


def test_a_passport_names_the_field_that_differs_and_both_values() -> None:
    assert PASSPORT.first_difference({"weights": "w2", "dtype": "bf16"}) == ("weights", "w1", "w2")
    assert PASSPORT.first_difference({"weights": "w1"}) == ("dtype", "bf16", "absent")
    assert PASSPORT.first_difference({**PASSPORT.fields, "newer": "x"}) == ("newer", "absent", "x")
    assert PASSPORT.first_difference(dict(PASSPORT.fields)) is None
