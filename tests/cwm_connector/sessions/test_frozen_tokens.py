"""Which tokens of a session no window holds, head by head."""

import pytest

from cwm_connector.sessions.head import Head
from cwm_connector.sessions.index import MARKED_HEADS
from tests.cwm_connector.sessions.talk import Talk, conversation, talk, words

__all__ = ["talk"]


def seen(talk: Talk) -> list[tuple[str, Head, bool]]:
    """Return the heads with unfrozen tokens, each with its session and whether it is the default head."""
    sessions = talk.index.recent()
    return [
        (session.session_id, head, default) for session in sessions for head, default in talk.index.unfrozen(session)
    ]


def unfrozen(talk: Talk) -> dict[str, int]:
    return {head.name: head.unfrozen_tokens for _, head, _ in seen(talk)}


def test_a_turn_that_ends_between_the_snapshot_and_its_commit_is_not_frozen(talk: Talk) -> None:
    said = conversation(talk)
    snapshot = talk.frozen()
    talk.say([*said, *words(30, 100)], words(31, 40))
    list(talk.index.mark_frozen("alice", snapshot.token_ids, snapshot.block_hashes))
    assert unfrozen(talk) == {"h1": 140}


def test_what_is_frozen_while_it_runs_stays_frozen_when_it_ends(talk: Talk) -> None:
    one = talk.answer(talk.begin(words(1, 400)), words(2, 40))
    snapshot = talk.frozen()
    list(talk.index.mark_frozen("alice", snapshot.token_ids, snapshot.block_hashes))
    assert unfrozen(talk) == {}
    talk.finish(one)
    assert unfrozen(talk) == {}


def test_a_branch_is_frozen_as_far_as_it_shares_what_is_frozen(talk: Talk) -> None:
    said = conversation(talk)
    snapshot = talk.frozen()
    list(talk.index.mark_frozen("alice", snapshot.token_ids, snapshot.block_hashes))
    talk.say([*said[:905], *words(30, 100)], words(31, 40))
    assert unfrozen(talk) == {"h2": 140}


def test_many_branches_are_marked_a_few_at_a_time_and_one_that_is_gone_by_then_is_left_out(talk: Talk) -> None:
    said = conversation(talk)
    for branch in range(2 * MARKED_HEADS):
        talk.say([*said[:905], *words(100 + branch, 100)], words(31, 40))
    snapshot = talk.frozen()
    parts = talk.index.mark_frozen("alice", snapshot.token_ids, snapshot.block_hashes)
    first = next(parts)
    assert len(first) == MARKED_HEADS and len(unfrozen(talk)) > MARKED_HEADS
    heads = talk.index._sessions["alice"].heads
    gone = next(name for name in heads.table.by_name if name not in first)
    heads.drop(gone)
    assert gone in {name for part in parts for name in part}
    assert set(unfrozen(talk).values()) == {140, len(said) - 905}


def test_a_head_that_moves_is_frozen_as_far_as_it_keeps_what_is_frozen(talk: Talk) -> None:
    said = talk.say(words(1, 400), words(2, 40))
    snapshot = talk.frozen()
    list(talk.index.mark_frozen("alice", snapshot.token_ids, snapshot.block_hashes))
    talk.say([*said[:425], *words(3, 20), *words(4, 30)], words(5, 10))
    assert unfrozen(talk) == {"h1": 60}


def test_each_head_of_a_chunk_with_unfrozen_tokens_is_seen_and_small_side_heads_are_not(talk: Talk) -> None:
    said = conversation(talk)
    talk.say([*said, *words(60, 30)], words(61, 30), "alice;kind=side")
    talk.say(words(70, 500), words(61, 30), "alice;kind=side")
    talk.say(words(80, 400), words(81, 30), "alice/agent")
    talk.say(words(90, 100), words(91, 30), "alice/tiny")
    found = {head.name: is_default for _, head, is_default in seen(talk)}
    assert found == {"h1": True, "h3": False, "agent": False}


def test_what_the_catalog_covers_is_taken_down_by_head(talk: Talk) -> None:
    said = conversation(talk)
    assert not any(head.coverage_known for _, head, _ in seen(talk))
    talk.index.mark_covered("alice", "h1", 1024)
    ((_, head, _),) = seen(talk)
    assert (head.unfrozen_tokens, head.coverage_known) == (len(said) - 1024, True)
    talk.index.mark_covered("alice", "h1", 10**9)
    assert unfrozen(talk) == {}


def test_a_session_that_fails_hides_no_other(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation(talk, "bad")
    said = conversation(talk, "good")
    bad = talk.index._sessions["bad"]
    monkeypatch.setattr(bad, "heads", None)
    assert [session for session, _, _ in seen(talk)] == ["good"]
    assert [view.session_id for view in talk.index.views()] == ["good"]
    assert talk.takes("good") == said
