"""Each result is written down once, and clients and engines of different versions understand each other."""

import msgspec
import pytest

from cwm_connector.protocol import results as m
from cwm_connector.protocol import stats
from cwm_connector.protocol.proofs import TakenProof
from cwm_connector.protocol.results import Answer, Frozen, OtherHead, Status, Thawed, TimedFreeze
from cwm_connector.protocol.wire import Result, encode

FREEZE = TimedFreeze(
    window_name="w",
    session_id="s",
    token_count=700,
    captured_tokens=640,
    recomputed_tokens=0,
    block_count=3,
    total_size_bytes=3 << 20,
    new_bytes=1 << 20,
    storage_tier="disk",
    tiers={"cpu": 2, "disk": 3},
    parent_window=None,
    duration_ms=312.5,
    capture_ms=12.5,
    head="h1",
    head_reason="it is the conversation that was continued last",
    other_heads=[OtherHead(head="h2", token_count=300, last_active_at="2026-01-23T09:30:00.250Z", title=None)],
    more_heads=1,
    proof=TakenProof(token_id=7, logprob=-0.5, taken_at="2026-01-23T09:30:00.250Z"),
    no_proof="no proof was taken",
)
STRUCTS = [
    each for each in {**vars(stats), **vars(m)}.values() if isinstance(each, type) and issubclass(each, msgspec.Struct)
]


def over_the_wire(result: Answer) -> dict:
    """What a client receives of it."""
    message = msgspec.msgpack.decode(encode(Result(1, result))[4:], type=Result)
    assert isinstance(message.value, dict)
    return message.value


def test_a_result_arrives_as_a_map_of_its_fields() -> None:
    received = over_the_wire(FREEZE)
    of_boundaries = {"resumable_tokens", "boundaries", "not_resumable"}  # said of models that have them
    assert list(received) == [name for name in TimedFreeze.__struct_fields__ if name not in of_boundaries]
    assert received["parent_window"] is None, "unknown is null and not left out"
    assert msgspec.convert(received, TimedFreeze) == FREEZE


def test_a_client_ignores_what_only_a_newer_engine_says() -> None:
    received = msgspec.convert(over_the_wire(FREEZE) | {"colour": "blue"}, Frozen)
    assert type(received) is Frozen
    assert msgspec.to_builtins(received) == {
        name: value for name, value in msgspec.to_builtins(FREEZE).items() if name != "capture_ms"
    }


def test_what_an_older_engine_does_not_say_has_its_default() -> None:
    thawed = Thawed(
        session_id="s",
        cache_salt="salt",
        window_name="w",
        token_count=700,
        restorable_tokens=640,
        restored_by_tier={},
        restoration_time_ms=1.0,
        partial=False,
        warning=None,
        recompute_is_faster=None,
    )
    received = over_the_wire(thawed)
    assert "reply" not in received
    assert msgspec.convert(received, Thawed).reply is None


def test_a_freeze_says_that_there_are_no_other_heads_and_leaves_out_how_many_more() -> None:
    received = over_the_wire(msgspec.structs.replace(FREEZE, other_heads=[], more_heads=0))
    assert received["other_heads"] == [] and "more_heads" not in received


def test_an_engine_that_does_not_know_heads_is_understood() -> None:
    older = {name: value for name, value in over_the_wire(FREEZE).items() if "head" not in name}
    frozen = msgspec.convert(older, Frozen)
    assert (frozen.head, frozen.other_heads, frozen.more_heads) == (None, None, 0)


def test_a_result_without_one_of_the_contracts_fields_is_refused() -> None:
    incomplete = over_the_wire(FREEZE)
    del incomplete["new_bytes"]
    with pytest.raises(msgspec.ValidationError, match="new_bytes"):
        msgspec.convert(incomplete, Frozen)


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_results_can_not_be_changed(struct: type[msgspec.Struct]) -> None:
    assert struct.__struct_config__.frozen


def test_only_what_was_not_asked_for_may_be_left_out() -> None:
    assert set(Status.__struct_defaults__) == {None}
    assert len(Status.__struct_defaults__) == 14, "blocks, has_more, next, proof, progress, and what cwm show adds"
    with_defaults = {each.__name__ for each in STRUCTS if each.__struct_defaults__}
    assert with_defaults == {
        *("Thawed", "Status", "Metrics", "WindowList", "SessionList"),
        *("Frozen", "TimedFreeze", "SessionItem", "NextFreeze"),  # the fields on heads, which are newer
        *("ImportOrigin", "KvStore"),  # what few windows and no older engine have
        *("CacheStats", "StoreStats"),  # the transfers under way, of which only an engine knows
    }


def test_token_ids_stay_out_of_logs() -> None:
    assert "secret" not in repr(m.WindowTokens(window_name="w", token_ids=b"secret"))
