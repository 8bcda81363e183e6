"""What a freeze takes after a thaw into a session that goes on under the thaw's salt."""

from array import array

import pytest

from cwm_connector.core.types import salt_hash
from cwm_connector.sessions.thaw_bindings import BoundWindow, ThawBindings
from cwm_connector.sessions.views import HeadReason
from tests.cwm_connector.sessions.talk import Talk, conversation, words


@pytest.fixture
def bindings() -> ThawBindings:
    return ThawBindings()


@pytest.fixture
def talk(bindings: ThawBindings) -> Talk:
    return Talk(resumes=bindings.resumes)


def thaw(bindings: ThawBindings, said: list[int], session: str = "alice", salt: str = "thawed") -> BoundWindow:
    window = BoundWindow("window", array("i", said), (), 0)
    bindings.bind(session, salt_hash(salt), window)
    return window


def test_the_first_turn_after_a_thaw_into_the_session_is_the_conversation(talk: Talk, bindings: ThawBindings) -> None:
    stem = conversation(talk)
    talk.say([*stem, *words(30, 200)], words(31, 50))
    thaw(bindings, stem)
    thawed = talk.say([*stem, *words(32, 100)], words(33, 20), salt="thawed")
    snapshot = talk.frozen()
    assert (list(snapshot.token_ids), snapshot.reason) == (thawed, HeadReason.MAIN)


def test_it_is_the_conversation_while_it_is_answered(talk: Talk, bindings: ThawBindings) -> None:
    stem = conversation(talk)
    thaw(bindings, stem)
    one = talk.begin([*stem, *words(32, 100)], salt="thawed")
    talk.answer(one, words(33, 20))
    assert talk.takes() == [*stem, *words(32, 100), *words(33, 20)]


def test_the_branch_before_the_thaw_is_the_conversation_again_once_it_goes_on(
    talk: Talk, bindings: ThawBindings
) -> None:
    stem = conversation(talk)
    first = talk.say([*stem, *words(30, 200)], words(31, 50))
    thaw(bindings, stem)
    talk.say([*stem, *words(32, 100)], words(33, 20), salt="thawed")
    first = talk.say([*first, *words(34, 10)], words(35, 10))
    assert talk.takes() == first


def test_a_window_of_another_conversation_that_is_thawed_into_the_session_is_its_conversation(
    talk: Talk, bindings: ThawBindings
) -> None:
    conversation(talk)
    other = words(50, 700)
    thaw(bindings, other)
    thawed = talk.say([*other, *words(32, 100)], words(33, 20), salt="thawed")
    assert talk.takes() == thawed


def test_a_short_window_counts_too(talk: Talk, bindings: ThawBindings) -> None:
    conversation(talk)
    thaw(bindings, words(50, 40))
    thawed = talk.say([*words(50, 40), *words(32, 100)], words(33, 20), salt="thawed")
    assert talk.takes() == thawed


def test_a_turn_after_one_that_was_aborted_in_its_first_prompt_counts_too(talk: Talk, bindings: ThawBindings) -> None:
    stem = conversation(talk)
    thaw(bindings, stem)
    talk.cut_off([*stem, *words(32, 100)], 300, salt="thawed")
    assert talk.takes() == stem
    thawed = talk.say([*stem, *words(34, 100)], words(33, 20), salt="thawed")
    assert talk.takes() == thawed


def test_a_window_that_is_read_while_the_turn_is_computed_counts_too(talk: Talk, bindings: ThawBindings) -> None:
    stem = conversation(talk)
    bindings.bind_name("alice", salt_hash("thawed"), "window", private=False)
    one = talk.begin([*stem, *words(32, 100)], salt="thawed")
    bindings.remember(BoundWindow("window", array("i", stem), (), 0), bindings.changes)
    talk.finish(talk.answer(one, words(33, 20)))
    assert talk.takes() == [*stem, *words(32, 100), *words(33, 20)]


def test_a_title_request_under_the_thaws_salt_is_not_the_conversation(talk: Talk, bindings: ThawBindings) -> None:
    stem = conversation(talk)
    thaw(bindings, stem)
    thawed = talk.say([*stem, *words(32, 100)], words(33, 20), salt="thawed")
    talk.say(words(60, 200), words(61, 10), salt="thawed", streams=False)
    talk.say([*stem, *words(62, 20)], words(63, 10), "alice;kind=side", salt="thawed")
    assert talk.takes() == thawed


@pytest.mark.parametrize("session", ["bob", "alice"])
def test_a_salt_that_no_thaw_into_the_session_has_made_changes_nothing(
    talk: Talk, bindings: ThawBindings, session: str
) -> None:
    stem = conversation(talk)
    thaw(bindings, stem, session, salt="thawed" if session == "bob" else "another")
    talk.say([*stem[:600], *words(32, 100)], words(33, 20), salt="thawed")
    assert talk.takes() == stem
