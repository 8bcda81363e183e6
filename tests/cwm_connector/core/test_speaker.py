"""names.py and speaker.py: what an identifier becomes, and that the middleware's text is read back as it was meant."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import is_session_id, legal_session_id
from cwm_connector.core.speaker import (
    Hints,
    RequestKind,
    Speaker,
    check_session,
    check_session_id,
    format_speaker,
    parse_speaker,
)

LEGAL = st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True)
HINTS = st.builds(
    Hints,
    kind=st.sampled_from(RequestKind),
    opening=st.none() | st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
    has_tools=st.none() | st.booleans(),
)
SPEAKERS = st.builds(Speaker, LEGAL, st.none() | LEGAL, HINTS) | st.builds(Speaker, st.none(), st.none(), HINTS)


# --- identifiers ---


@pytest.mark.parametrize(
    ("identifier", "legal"),
    [
        ("alice", "alice"),
        (" alice\n", "alice"),
        ("alice@example.com", "alice-example.com-ff8d9819"),
        ("alice-example.com", "alice-example.com"),
        ("über", "-ber-b51c8541"),
        ("a/b", "a-b-c14cddc0"),
        ("x" * 129, "x" * 119 + "-0ec9eb33"),
    ],
)
def test_an_identifier_becomes_a_session_id_by_the_documented_rule(identifier: str, legal: str) -> None:
    assert legal_session_id(identifier) == legal


@given(st.text(st.characters(), max_size=1500))
def test_every_identifier_becomes_a_legal_id_or_none(text: str) -> None:
    legal = legal_session_id(text)
    too_long = len(text.strip().encode("utf-8", "surrogatepass")) > 1024
    assert (legal is None) == (not text.strip() or too_long)
    assert legal is None or (is_session_id(legal) and legal_session_id(legal) == legal)


@given(st.lists(st.text(max_size=200), unique_by=str.strip, max_size=50))
def test_different_identifiers_become_different_sessions(texts: list[str]) -> None:
    legal = [each for text in texts if (each := legal_session_id(text)) is not None]
    assert len(set(legal)) == len(legal)


def test_identifiers_that_differ_only_in_what_is_illegal_or_cut_stay_apart() -> None:
    alike = ["a b", "a/b", "a@b", "a\0b", "a\tb", "x" * 129, "x" * 130, "é", "è"]
    assert len({legal_session_id(each) for each in alike}) == len(alike)


# --- the text between the middleware and the engine ---


@given(SPEAKERS)
def test_what_is_written_is_read_back(speaker: Speaker) -> None:
    assert (parse_speaker(format_speaker(speaker)) or Speaker(None)) == speaker


@given(st.text())
def test_no_text_makes_the_parser_fail(text: str) -> None:
    speaker = parse_speaker(text)
    assert speaker is None or parse_speaker(format_speaker(speaker)) == speaker


@pytest.mark.parametrize(
    ("text", "speaker"),
    [
        (None, None),
        ("", None),
        (" ", None),
        ("x" * 1025, None),
        ("alice", Speaker("alice")),
        ("alice/a1", Speaker("alice", "a1")),
        ("alice@x/agent 1", Speaker(legal_session_id("alice@x"), legal_session_id("agent 1"))),
        ("a/b/c", Speaker(legal_session_id("a/b/c"))),
        ("/home/alice", Speaker(legal_session_id("/home/alice"))),
        ("alice/", Speaker(legal_session_id("alice/"))),
        ("alice;kind=side", Speaker("alice", None, Hints(RequestKind.SIDE))),
        ("a;b", Speaker(legal_session_id("a;b"))),
        ("a;kind=other", Speaker(legal_session_id("a;kind=other"))),
        ("a;kind=side;b", Speaker(legal_session_id("a;kind=side;b"))),
        ("a;tools=no;tools=yes", Speaker(legal_session_id("a;tools=no"), None, Hints(has_tools=True))),
        (";opening=0123abcd;tools=no", Speaker(None, None, Hints(opening="0123abcd", has_tools=False))),
    ],
)
def test_a_text_is_read_as_the_docstring_says(text: str | None, speaker: Speaker | None) -> None:
    assert parse_speaker(text) == speaker


# --- what users name ---


def test_a_user_names_a_session_as_a_client_does() -> None:
    for text in ("alice", "alice@example.com", "team/alice", "/home/alice", "a/b/c"):
        said = parse_speaker(text)
        assert said is not None and check_session(text) == said
        assert check_session_id(text) == said.session_id


@pytest.mark.parametrize("text", ["", "  ", "x" * 1025, "é" * 513])
def test_an_empty_or_absurd_id_is_refused_without_repeating_it_at_length(text: str) -> None:
    with pytest.raises(CWMError) as refused:
        check_session_id(text)
    assert refused.value.code is Code.SESSION_ID
    assert len(str(refused.value)) < 300
    assert not re.search(r"\n", str(refused.value))
