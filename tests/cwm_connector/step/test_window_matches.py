"""step/window_matches.py: a long request is compared with thawed windows over several steps."""

from array import array
from typing import Any

import pytest

from cwm_connector.core.identity import Geometry
from cwm_connector.core.types import salt_hash
from cwm_connector.sessions.thaw_bindings import BoundWindow, ThawBindings
from cwm_connector.step import window_matches
from cwm_connector.step.window_matches import WindowMatches
from tests.cwm_connector.step.test_scheduler import Side, specs
from tests.support.vllm_parts import BLOCK_TOKENS, request

AT_ONCE = 4


@pytest.fixture(autouse=True)
def a_few_blocks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_matches, "COMPARED_AT_ONCE", AT_ONCE * BLOCK_TOKENS)


def thaw(bindings: ThawBindings, name: str, tokens: list[int]) -> None:
    packed = array("i", tokens)
    window = BoundWindow(name, packed, specs(packed), len(packed) // BLOCK_TOKENS)
    bindings.bind("bob", salt_hash(name), window)


def test_each_step_compares_a_bounded_part_of_a_long_request(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = ThawBindings()
    matches = WindowMatches(Geometry.of(BLOCK_TOKENS, 32), bindings)
    thaw(bindings, "long", list(range(10 * BLOCK_TOKENS)))
    thaw(bindings, "other", [*range(2 * BLOCK_TOKENS), *range(9000, 9000 + 8 * BLOCK_TOKENS)])
    compared: list[int] = []
    compare = BoundWindow.common_blocks

    def noted(window: BoundWindow, token_ids: "array[int]", size: int, limit: int, *more: Any) -> int:
        compared.append(len(token_ids) // size)
        return compare(window, token_ids, size, limit, *more)

    monkeypatch.setattr(BoundWindow, "common_blocks", noted)
    one = request(range(10 * BLOCK_TOKENS + 1), session_id="bob")
    assert [matches.is_comparing(one, "bob", 0) for _ in range(4)] == [True, True, False, False]
    assert compared == [AT_ONCE, AT_ONCE, AT_ONCE, 2], "the other window was left after the first part"
    best = matches.best(one, "bob", 0)
    assert best is not None and (best.window.name, best.to_block) == ("long", 10)


def test_vllm_is_asked_to_come_back_until_all_is_compared() -> None:
    side = Side()
    side.thaw(range(160))
    one = request(range(161), session_id="bob")
    assert [side.scheduler.matched_tokens(one, 0) for _ in range(4)] == [None, None, 160, 160]


def test_a_window_that_is_thawed_meanwhile_is_compared_from_its_beginning() -> None:
    bindings = ThawBindings()
    matches = WindowMatches(Geometry.of(BLOCK_TOKENS, 32), bindings)
    thaw(bindings, "short", list(range(6 * BLOCK_TOKENS)))
    one = request(range(10 * BLOCK_TOKENS + 1), session_id="bob")
    assert matches.is_comparing(one, "bob", 0)
    thaw(bindings, "long", list(range(10 * BLOCK_TOKENS)))
    while matches.is_comparing(one, "bob", 0):
        pass
    best = matches.best(one, "bob", 0)
    assert best is not None and (best.window.name, best.to_block) == ("long", 10)
