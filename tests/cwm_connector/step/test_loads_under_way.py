"""loads_under_way.py with vLLM's own requests and a clock of the test."""

from array import array
from typing import Any

from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.step.loads_under_way import MAX_WAITING, WAIT_LIMIT_S, LoadsUnderWay
from cwm_connector.step.window_matches import Match
from tests.support.vllm_parts import BLOCK_TOKENS, request

BLOCKS = 10
IDS = range(BLOCKS * BLOCK_TOKENS + 1)


def match(to_block: int = BLOCKS, from_block: int = 0) -> Match:
    return Match(BoundWindow("w", array("i", IDS), (), BLOCKS), from_block, to_block, automatic=False)


def named(request_id: str, ids: Any = IDS, **more: Any) -> Any:
    return request(ids, request_id=request_id, **more)


class Loads(LoadsUnderWay):
    """With a request `first` that loads the first blocks of `IDS`."""

    def __init__(self, to_block: int = BLOCKS) -> None:
        self.now = 0.0
        super().__init__(lambda: self.now)
        self.started(named("first"), 0, to_block)


def test_a_request_waits_until_the_blocks_are_in_the_prefix_cache() -> None:
    loads = Loads()
    assert loads.wait(named("second"), match())
    assert loads.is_waiting("second", 0)
    assert not loads.is_waiting("second", BLOCKS)


def test_a_request_that_shares_less_than_half_loads_by_itself() -> None:
    other = [*IDS[: 4 * BLOCK_TOKENS], *range(1000, 1000 + 6 * BLOCK_TOKENS + 1)]
    assert not Loads().wait(named("second", other), match())
    assert Loads().wait(named("second", other), match(to_block=8))


def test_it_stops_waiting_at_the_end_of_what_both_share() -> None:
    loads = Loads(to_block=6)
    assert loads.wait(named("second"), match())
    assert loads.is_waiting("second", 5) and not loads.is_waiting("second", 6)


def test_a_request_with_another_salt_does_not_wait() -> None:
    assert not Loads().wait(named("second", cache_salt="other"), match())
    assert not Loads().wait(named("second", cache_salt="other"), match(to_block=1))


def test_a_load_that_begins_further_on_is_not_waited_for() -> None:
    loads = Loads()
    loads.started(named("first"), 2, BLOCKS)
    assert not loads.wait(named("second"), match())
    assert loads.wait(named("third"), match(from_block=3))


def test_a_request_that_may_not_read_the_prefix_cache_does_not_wait() -> None:
    second = named("second")
    second.skip_reading_prefix_cache = True
    assert not Loads().wait(second, match())


def test_after_a_failed_load_a_request_waits_for_none() -> None:
    loads = Loads()
    assert loads.wait(named("second"), match())
    assert loads.failed("first")
    assert not loads.is_waiting("second", 0)
    loads.started(named("third"), 0, BLOCKS)
    assert not loads.wait(named("second"), match())


def test_a_failure_after_the_end_of_the_request_is_no_news() -> None:
    loads = Loads()
    loads.finished("first")
    assert not loads.failed("first")


def test_waiting_ends_at_the_limit_also_over_several_loads() -> None:
    loads = Loads()
    assert loads.wait(named("second"), match())
    loads.now = WAIT_LIMIT_S - 1
    loads.ended("first")
    assert not loads.is_waiting("second", 0)
    loads.started(named("third"), 0, BLOCKS)
    assert loads.wait(named("second"), match()) and loads.is_waiting("second", 0)
    loads.now = WAIT_LIMIT_S
    assert not loads.is_waiting("second", 0)
    assert not loads.wait(named("second"), match())


def test_only_so_many_requests_wait() -> None:
    loads = Loads()
    waits = [loads.wait(named(f"r{number}"), match()) for number in range(MAX_WAITING + 1)]
    assert waits == [True] * MAX_WAITING + [False]
    loads.finished("r0")
    assert loads.wait(named("one more"), match())


def test_a_load_whose_request_never_ends_is_not_waited_for_for_ever() -> None:
    loads = Loads()
    assert loads.wait(named("second"), match())
    loads.now = WAIT_LIMIT_S
    assert not loads.wait(named("third"), match())
    assert loads.failed("first"), "its request may still be there"
