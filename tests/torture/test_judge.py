"""judge.py: given a store that is wrong, it says so, and how; given one that may be so, it says nothing."""

from typing import Any

import pytest

from tests.torture.events import Asked, Damage, Done, Refused, Seen, Window
from tests.torture.judge import Kind, judge
from tests.torture.ledger import Ledger
from tests.torture.texts import Run, fingerprint, ids_of, restorable, tokens_of

W = Window("w", "s", (Run(100, 40), Run(900, 9)), "text", ("a", "b"))


def seen(window: Window = W, **different: Any) -> Seen:
    """As a start shows a window that is whole."""
    whole: dict[str, Any] = {
        "name": window.name,
        "session_id": window.session_id,
        "ids": fingerprint(ids_of(window.text)),
        "tokens": tokens_of(window.text),
        "description": window.description,
        "tags": window.tags,
        "parent": None,
        "size_bytes": 4096,
        "restored": restorable(window.text),
        "fault": None,
        "wrong_bytes": False,
    }
    return Seen(**(whole | different))


def after(*events: Asked | Done | Refused, kill: bool = False) -> Ledger:
    ledger = Ledger()
    for event in events:
        if isinstance(event, Asked):
            ledger.ask(event)
        elif isinstance(event, Done):
            ledger.acknowledge(event)
        else:
            ledger.refuse(event)
    if kill:
        ledger.kill()
    return ledger


FROZEN = (Asked(1, "freeze", "w", W), Done(1, size_bytes=4096))


def kinds(ledger: Ledger, *listed: Seen, damage: tuple[Damage, ...] = ()) -> list[Kind]:
    return [violation.kind for violation in judge(ledger, listed, damage).violations]


def test_an_acknowledged_window_that_is_whole_is_no_violation() -> None:
    assert kinds(after(*FROZEN), seen()) == []


def test_an_acknowledged_window_that_is_not_listed_is_lost() -> None:
    assert kinds(after(*FROZEN)) == [Kind.LOST]


def test_a_window_that_restores_less_than_it_holds_is_lost() -> None:
    assert kinds(after(*FROZEN), seen(restored=32, fault="CWM-2003: not there")) == [Kind.LOST]


def test_a_window_whose_chunk_fails_its_checksum_is_corrupt() -> None:
    assert kinds(after(*FROZEN), seen(restored=32, fault="CWM-4004: other bytes")) == [Kind.CORRUPT]


def test_wrong_bytes_are_corrupt_even_if_all_were_loaded() -> None:
    assert kinds(after(*FROZEN), seen(wrong_bytes=True, fault="block 1")) == [Kind.CORRUPT]


@pytest.mark.parametrize(
    "different",
    [
        {"session_id": "t"},
        {"ids": fingerprint([1])},
        {"tokens": 48},
        {"description": "other"},
        {"tags": ("a",)},
        {"size_bytes": 8192},
        {"parent": "p"},
    ],
)
def test_a_window_with_another_field_is_corrupt(different: dict[str, Any]) -> None:
    assert kinds(after(*FROZEN), seen(**different)) == [Kind.CORRUPT]


def test_a_window_that_nobody_asked_for_is_a_phantom() -> None:
    assert kinds(after(), seen()) == [Kind.PHANTOM]


def test_a_window_that_was_refused_is_a_phantom() -> None:
    assert kinds(after(FROZEN[0], Refused(1, 4003, "full")), seen()) == [Kind.PHANTOM]


def test_a_deletion_that_was_acknowledged_and_undone_is_a_phantom() -> None:
    ledger = after(*FROZEN, Asked(2, "delete", "w", None), Done(2))
    assert kinds(ledger) == []
    assert kinds(ledger, seen()) == [Kind.PHANTOM]


def test_what_was_under_way_is_there_or_not_but_never_half() -> None:
    ledger = after(FROZEN[0], kill=True)
    assert kinds(ledger) == kinds(ledger, seen()) == []
    assert kinds(ledger, seen(restored=0, fault="CWM-2003")) == [Kind.LOST]


def test_a_change_under_way_shows_before_or_after_and_nothing_between() -> None:
    changed = Window("w", "s", W.text, "new", ("c",), size_bytes=4096)
    ledger = after(*FROZEN, Asked(2, "tag", "w", changed), kill=True)
    assert kinds(ledger, seen()) == kinds(ledger, seen(changed)) == []
    assert kinds(ledger, seen(description="new")) == [Kind.CORRUPT]
    assert kinds(ledger) == [Kind.LOST]


def test_what_tiers_and_catalog_do_not_agree_on_is_reported() -> None:
    damage = (Damage(True, "bytes that nobody refers to"), Damage(False, "miscounted"))
    assert kinds(after(*FROZEN), seen(), damage=damage) == [Kind.LEAKED, Kind.CORRUPT]
