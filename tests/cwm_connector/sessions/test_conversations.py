"""What a freeze takes in the situations that real clients bring about."""

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import Micros
from cwm_connector.sessions.bounds import MAX_SIDE_HEADS
from cwm_connector.sessions.choice import SILENT_AFTER
from cwm_connector.sessions.unnamed import session_of_salt
from cwm_connector.sessions.views import HeadKind, HeadReason
from tests.cwm_connector.sessions.talk import SYSTEM, Talk, conversation, talk, words

__all__ = ["talk"]

SHORT_SYSTEM = words(1, 40)


# --- requests that were cut off --------------------------------------------------------------------------------------


@pytest.mark.parametrize("computed", [-5, 0, 16, 100, 480, 900, 1000])
def test_a_repetition_that_is_aborted_in_prefill_shortens_nothing(talk: Talk, computed: int) -> None:
    said = conversation(talk)
    for _ in range(20):
        talk.cut_off([*said[:1500], *words(30, 500)], computed)
    assert talk.takes() == said
    assert [view.heads for view in talk.index.views()] == [("h1",)]


def test_what_an_aborted_turn_computed_beyond_the_conversation_extends_it(talk: Talk) -> None:
    said = conversation(talk)
    turn = [*said, *words(30, 500)]
    talk.cut_off(turn, len(said) + 203)
    assert talk.takes() == turn[: len(said) + 203]
    talk.cut_off(turn, len(said) + 100)
    assert talk.takes() == turn[: len(said) + 203]


def test_the_turn_after_an_aborted_one_may_be_another_one(talk: Talk) -> None:
    said = conversation(talk)
    talk.cut_off([*said, *words(30, 500)], len(said) + 203)
    other = talk.say([*said, *words(31, 100)], words(32, 50))
    assert talk.takes() == other


def test_an_edit_that_is_aborted_in_prefill_displaces_nothing(talk: Talk) -> None:
    said = conversation(talk)
    for attempt in range(20):
        talk.cut_off([*said[:700], *words(30 + attempt, 500)], 1000)
    snapshot = talk.frozen()
    assert (list(snapshot.token_ids), snapshot.reason) == (said, HeadReason.MAIN)


def test_an_aborted_answer_is_kept_as_far_as_it_came_and_the_next_turn_goes_on_without_it(talk: Talk) -> None:
    said = conversation(talk)
    aborted = talk.say([*said, *words(30, 100)], words(31, 40))
    assert talk.takes() == aborted
    resumed = talk.say([*said, *words(30, 100), *words(32, 90)], words(33, 40))
    assert talk.takes() == resumed
    assert talk.index.views()[0].heads == ("h1",)


def test_a_retry_with_another_answer_is_the_conversation(talk: Talk) -> None:
    said = conversation(talk)
    talk.say([*said, *words(30, 100)], words(31, 40))
    retried = talk.say([*said, *words(30, 100)], words(32, 20))
    assert talk.takes() == retried


def test_a_first_prompt_that_is_aborted_is_frozen_as_far_as_it_came(talk: Talk) -> None:
    talk.cut_off(words(1, 4000), 3000)
    talk.say(words(2, 300), words(3, 10))
    snapshot = talk.frozen()
    assert (list(snapshot.token_ids), snapshot.reason) == (words(1, 3000), HeadReason.UNFINISHED)
    said = talk.say(words(1, 4000), words(4, 10))
    assert (talk.takes(), talk.frozen().reason) == (said, HeadReason.MAIN)


@pytest.mark.parametrize("in_flight", [1, 7, 40, 200])
def test_a_preempted_request_holds_no_token_that_was_not_computed(talk: Talk, in_flight: int) -> None:
    said = conversation(talk)
    one = talk.answer(talk.begin([*said, *words(30, 100)]), words(31, 4))
    one.num_computed_tokens, one.num_in_flight_tokens = 0, in_flight
    assert talk.takes() == said
    talk.finish(one)
    assert talk.takes() == said


def test_a_preempted_first_request_leaves_nothing_to_freeze(talk: Talk) -> None:
    one = talk.begin(words(1, 100))
    one.num_computed_tokens, one.num_in_flight_tokens = 0, 1
    with pytest.raises(CWMError, match="CWM-3001"):
        talk.frozen()
    talk.finish(one)
    with pytest.raises(CWMError, match="CWM-3001"):
        talk.frozen()


def test_tokens_without_a_hash_are_left_out(talk: Talk) -> None:
    one = talk.begin(words(1, 100))
    one.num_computed_tokens = 99
    del one.block_hashes[5:]
    snapshot = talk.frozen()
    assert len(snapshot.block_hashes) == len(snapshot.token_ids) // 16 == 5


# --- side requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 100])
def test_a_title_request_that_ends_last_is_not_the_conversation(talk: Talk, count: int) -> None:
    said = conversation(talk)
    for number in range(count):
        talk.say(words(50 + number, 300), words(30, 10))
    snapshot = talk.frozen()
    assert (list(snapshot.token_ids), snapshot.reason) == (said, HeadReason.MAIN)
    assert len(snapshot.others) == min(count, 20) and snapshot.more_heads == max(0, count - 20)


def test_a_title_request_that_comes_first_is_not_the_conversation(talk: Talk) -> None:
    talk.say(words(50, 300), words(30, 10))
    said = talk.say([*SYSTEM, *words(10, 400)], words(20, 200))
    assert talk.takes() == said
    title = talk.begin(words(51, 100))
    talk.answer(title, words(52, 10))
    assert talk.takes() == said, "also while it runs"


def test_a_title_request_that_does_not_stream_is_not_the_conversation_however_long_it_is(talk: Talk) -> None:
    said = talk.say(words(1, 50), words(20, 60))
    title = [*words(50, 400)]
    talk.say(title, words(30, 10), streams=False)
    assert talk.takes() == said


def test_an_answer_by_schema_is_not_the_conversation(talk: Talk) -> None:
    said = talk.say(words(1, 50), words(20, 60))
    talk.say(words(50, 400), words(30, 10), schema=True)
    snapshot = talk.frozen()
    assert list(snapshot.token_ids) == said
    assert [each.kind for each in snapshot.others] == [HeadKind.SIDE]


def test_a_session_of_answers_by_schema_alone_can_be_frozen(talk: Talk) -> None:
    said = talk.say(words(1, 50), words(20, 60), schema=True)
    said = talk.say([*said, *words(3, 50)], words(21, 60), schema=True)
    assert (talk.takes(), talk.frozen().reason) == (said, HeadReason.ONLY)


def test_a_request_without_the_tools_of_the_conversation_is_not_it(talk: Talk) -> None:
    said = talk.say(words(1, 50), words(20, 60), "alice;tools=yes;opening=aaaaaaaa")
    talk.say(words(50, 400), words(30, 10), "alice;tools=no;opening=bbbbbbbb")
    assert talk.takes() == said


def test_a_side_question_over_the_whole_conversation_stays_beside_it(talk: Talk) -> None:
    said = conversation(talk)
    for number in range(3):
        talk.say([*said, *words(60 + number, 30)], words(70, 40), "alice;kind=side")
        assert talk.takes() == said
    said = talk.say([*said, *words(30, 100)], words(31, 40))
    assert talk.takes() == said


def test_a_suggestion_without_hints_is_left_behind_by_the_next_turn(talk: Talk) -> None:
    said = conversation(talk)
    talk.say([*said, *words(60, 30)], words(70, 40))
    assert talk.takes()[: len(said)] == said
    said = talk.say([*said, *words(30, 100)], words(31, 40))
    assert talk.takes() == said


def test_a_suggestion_that_the_user_takes_becomes_part_of_the_conversation(talk: Talk) -> None:
    said = conversation(talk)
    suggested = talk.say([*said, *words(60, 30)], words(70, 40), "alice;kind=side")
    said = talk.say([*suggested, *words(30, 100)], words(31, 40))
    assert (talk.takes(), talk.frozen().others) == (said, ())


def test_few_side_heads_are_kept(talk: Talk) -> None:
    said = conversation(talk)
    for number in range(100):
        talk.say(words(50 + number, 300), words(30, 10), "alice;kind=side")
    assert len(talk.index.views()[0].heads) == 1 + MAX_SIDE_HEADS
    (session,) = talk.index.recent()
    assert not session.needs_trimming(1 << 30) and session.heads.sides == MAX_SIDE_HEADS
    assert talk.takes() == said


@pytest.mark.parametrize("system", [SYSTEM, SHORT_SYSTEM], ids=["long", "short"])
def test_a_compaction_is_not_the_conversation_and_the_turn_after_it_is(talk: Talk, system: list[int]) -> None:
    tools = "alice;tools=yes;opening=aaaaaaaa"
    said = system
    for turn in range(3):
        said = talk.say([*said, *words(10 + turn, 400)], words(20 + turn, 200), tools)
    talk.say([*said, *words(60, 80)], words(61, 300), "alice;tools=yes;opening=aaaaaaaa;kind=compaction")
    assert talk.takes() == said
    begun = talk.say([*system, *words(61, 300), *words(62, 50)], words(63, 40), tools)
    assert talk.takes() == begun
    assert said in [talk.takes(head=each.head) for each in talk.frozen().others], "the old conversation is kept too"


def test_a_compaction_that_flattens_the_history_is_not_the_conversation(talk: Talk) -> None:
    said = SYSTEM
    for turn in range(3):
        said = talk.say([*said, *words(10 + turn, 400)], words(20 + turn, 200), "alice;tools=yes;opening=aaaaaaaa")
    talk.say(words(60, 2500), words(61, 300), "alice;tools=no;opening=bbbbbbbb")
    assert talk.takes() == said


# --- subagents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 300])
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_100_subagents_push_the_conversation_out_of_nothing(talk: Talk, size: int, named: bool) -> None:
    said = talk.say(words(1, 4000), words(2, 50))
    for number in range(100):
        talk.say(words(100 + number, size), words(3, 10), f"alice/agent{number}" if named else "alice")
    assert talk.takes() == said
    assert len(talk.index.views()[0].heads) == 101


def test_a_subagent_keeps_its_longest_when_a_repetition_is_cut_off(talk: Talk) -> None:
    said = talk.say(words(1, 400), words(2, 50), "alice/a1")
    talk.cut_off([*said, *words(3, 100)], 300, "alice/a1")
    talk.cut_off(words(4, 300), 200, "alice/a1")
    assert talk.takes(head="a1") == said
    edited = talk.say(words(4, 300), words(5, 10), "alice/a1")
    assert talk.takes(head="a1") == edited


def test_a_subagent_called_like_a_head_of_ours_takes_no_head_from_the_conversation(talk: Talk) -> None:
    said = talk.say(words(1, 400), words(2, 50))
    agent = talk.say(words(3, 900), words(4, 50), "alice/h1")
    assert talk.takes() == said
    assert talk.takes(head="h1") == agent


# --- branches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [320, 700, 1400])
def test_edited_history_is_the_conversation_and_the_old_one_is_kept(talk: Talk, kept: int) -> None:
    said = conversation(talk)
    edited = talk.say([*said[:kept], *words(30, 100)], words(31, 40))
    assert talk.takes() == edited
    (old,) = talk.frozen().others
    assert talk.takes(head=old.head) == said


def test_of_two_branches_the_one_that_was_continued_last_is_the_conversation(talk: Talk) -> None:
    said = conversation(talk)
    one = talk.say([*said, *words(30, 100)], words(31, 40))
    other = talk.say([*said, *words(32, 100)], words(33, 40))
    assert talk.takes() == other
    one = talk.say([*one, *words(34, 100)], words(35, 40))
    assert talk.takes() == one
    assert len(talk.index.views()[0].heads) == 2


def test_each_of_several_answers_is_a_head(talk: Talk) -> None:
    prompt = words(1, 100)
    running = [talk.begin(prompt) for _ in range(3)]
    for number, one in enumerate(running):
        talk.finish(talk.answer(one, words(10 + number, 40)))
    assert len(talk.index.views()[0].heads) == 3
    chosen = talk.say([*prompt, *words(11, 40), *words(20, 50)], words(21, 40))
    assert talk.takes() == chosen
    assert len(talk.index.views()[0].heads) == 3


def test_rewritten_tool_arguments_do_not_make_a_branch(talk: Talk) -> None:
    prompt, answer = words(1, 100), words(2, 40)
    talk.say(prompt, answer)
    said = talk.say([*prompt, *answer[:20], *words(3, 22), *words(4, 50)], words(5, 10))
    assert (talk.takes(), talk.index.views()[0].heads) == (said, ("h1",))


def test_a_turn_with_rewritten_arguments_that_was_aborted_first_makes_no_branch(talk: Talk) -> None:
    prompt, answer = words(1, 100), words(2, 40)
    said = talk.say(prompt, answer)
    turn = [*prompt, *answer[:20], *words(3, 22), *words(4, 50)]
    talk.cut_off(turn, 160)
    assert talk.takes() == said
    said = talk.say(turn, words(5, 10))
    assert (talk.takes(), talk.index.views()[0].heads) == (said, ("h1",))


def test_a_template_that_renders_the_end_of_a_prompt_again_makes_no_branch(talk: Talk) -> None:
    prompt = words(1, 100)
    talk.say(prompt, words(2, 40))
    said = talk.say([*prompt[:-4], *words(3, 60)], words(5, 10))
    assert (talk.takes(), talk.index.views()[0].heads) == (said, ("h1",))


# --- clear and resume ------------------------------------------------------------------------------------------------


def test_after_clear_under_the_same_id_the_new_conversation_counts(talk: Talk) -> None:
    conversation(talk)
    begun = talk.say([*SYSTEM, *words(40, 30)], words(41, 20))
    assert talk.takes() == begun


def test_a_long_first_prompt_after_clear_counts_if_it_shares_the_system_prompt(talk: Talk) -> None:
    conversation(talk, turns=2)
    begun = talk.say([*SYSTEM, *words(40, 3000)], words(41, 20))
    assert talk.takes() == begun


def test_another_conversation_under_the_same_id_counts_once_it_goes_on(talk: Talk) -> None:
    old = conversation(talk, turns=2)
    said = talk.say(words(40, 600), words(41, 100))
    assert talk.takes() == old
    said = talk.say([*said, *words(42, 50)], words(43, 20))
    assert talk.takes() == said


def test_a_short_conversation_counts_if_the_long_one_was_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    talk = Talk(clock=lambda: Micros(now[0]))
    old = conversation(talk)
    said = talk.say(words(40, 50), words(41, 30))
    said = talk.say([*said, *words(42, 50)], words(43, 20))
    assert talk.takes() == old
    now[0] += SILENT_AFTER + 1
    said = talk.say([*said, *words(44, 50)], words(45, 20))
    assert talk.takes() == said


def test_a_resume_under_the_same_id_goes_on(talk: Talk) -> None:
    said = conversation(talk)
    for number in range(8):
        talk.say(words(50 + number, 300), words(30, 10))
    said = talk.say([*said, *words(40, 50)], words(41, 20))
    assert talk.takes() == said


def test_a_shared_system_prompt_makes_no_session_of_another(talk: Talk) -> None:
    said = {
        f"s{number}": talk.say([*SYSTEM, *words(10 + number, 60)], words(9, 5), f"s{number}") for number in range(100)
    }
    assert {session: talk.takes(session) for session in said} == said


def test_chains_under_two_salts_are_two_sessions_and_never_one_chain(talk: Talk) -> None:
    one = talk.say(words(1, 100), words(2, 20), None, salt="one")
    other = talk.say(words(1, 100), words(3, 20), None, salt="two")
    assert talk.takes(session_of_salt("one")) == one
    assert talk.takes("two") == other
    talk.say(words(1, 100), words(2, 20), "alice", salt="one")
    salted = talk.frozen()
    talk.say(words(1, 100), words(2, 20), "alice", salt="two")
    assert (salted.cache_salt, talk.frozen().cache_salt) == ("one", "one") and len(talk.frozen().others) == 1


# --- running requests ------------------------------------------------------------------------------------------------


def test_a_running_turn_counts_once_its_prompt_is_computed(talk: Talk) -> None:
    said = conversation(talk)
    edited = [*said[:900], *words(30, 400)]
    one = talk.begin(edited)
    one.num_computed_tokens = 1200
    assert talk.takes() == said
    talk.answer(one, words(31, 20))
    assert talk.takes() == [*edited, *words(31, 20)]
    view = talk.index.views()[0]
    assert view.head == talk.frozen().head and view.running
    talk.finish(one)
    assert talk.takes() == [*edited, *words(31, 20)]


def test_several_running_requests_count_in_the_order_of_their_arrival(talk: Talk) -> None:
    said = conversation(talk)
    first, second = talk.begin([*said, *words(30, 100)]), talk.begin([*said, *words(32, 100)])
    talk.answer(second, words(33, 10))
    talk.answer(first, words(31, 10))
    assert talk.takes() == [*said, *words(32, 100), *words(33, 10)]
    assert talk.index._sessions["alice"].heads.table.by_name.keys() == {"h1"}, "nothing is stored yet"


# --- hints ------------------------------------------------------------------------------------------------------------


def test_an_anonymous_request_can_have_hints(talk: Talk) -> None:
    said = talk.say(words(1, 100), words(2, 20), None)
    talk.say([*said, *words(3, 30)], words(4, 20), ";kind=side")
    (view,) = talk.index.views()
    assert talk.takes(view.session_id) == said
