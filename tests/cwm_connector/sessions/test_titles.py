"""titles.py: the first words of a user, read off token ids with the small model's real tokenizer."""

import logging
import threading
from array import array
from concurrent.futures import Future
from typing import Any

import pytest
from transformers import AutoTokenizer

from cwm_connector.sessions.titles import MAX_CHARACTERS, Titler, TitleReader
from cwm_connector.sessions.token_run import TokenRun
from tests.support.engine import model_folder

PATIENCE_S = 60


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    if not (model_folder() / "config.json").exists():
        pytest.skip("the small model is missing: run `make model`")
    return AutoTokenizer.from_pretrained(model_folder())


def ids(tokenizer: Any, *messages: tuple[str, str]) -> "array[int]":
    told = [{"role": role, "content": content} for role, content in messages]
    text = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
    return array("i", tokenizer.encode(text, add_special_tokens=False))


def test_the_title_is_what_the_user_said_first(tokenizer: Any) -> None:
    talk = ids(
        tokenizer, ("system", "Be brief. " * 2000), ("user", "Why is\n the sky blue?"), ("assistant", "It scatters."),
        ("user", "And red?"),
    )  # fmt: skip
    assert TitleReader(tokenizer).title_of(talk) == "Why is the sky blue?"


def test_a_long_message_is_cut_between_words(tokenizer: Any) -> None:
    title = TitleReader(tokenizer).title_of(ids(tokenizer, ("user", "many words " * 50)))
    assert title is not None and len(title) <= MAX_CHARACTERS
    assert title.endswith(("many…", "words…"))


@pytest.mark.parametrize("note", ["<system-reminder>\nCLAUDE.md says so\n</system-reminder>", "<system-reminder>on"])
def test_what_a_client_says_in_its_users_name_is_left_out(tokenizer: Any, note: str) -> None:
    title = TitleReader(tokenizer).title_of(ids(tokenizer, ("user", f"Fix the test\n{note}")))
    assert title == "Fix the test"


def test_control_characters_never_reach_a_terminal(tokenizer: Any) -> None:
    title = TitleReader(tokenizer).title_of(ids(tokenizer, ("user", "red \x1b[31m alert\x07")))
    assert title == "red [31m alert"


def test_a_plain_completion_is_titled_by_its_beginning(tokenizer: Any) -> None:
    plain = array("i", tokenizer.encode("Once upon a time", add_special_tokens=False))
    assert TitleReader(tokenizer).title_of(plain) == "Once upon a time"


def test_without_a_chat_template_there_are_titles_all_the_same(tokenizer: Any) -> None:
    class Bare:
        encode, decode = tokenizer.encode, tokenizer.decode

        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            raise ValueError("no template")

    plain = array("i", tokenizer.encode("Once upon a time", add_special_tokens=False))
    assert TitleReader(Bare()).title_of(plain) == "Once upon a time"


def test_a_mark_is_found_at_whole_tokens_only() -> None:
    class Shifted:
        """Its mark is the id 1; the ids 256 and 65536 hold its bytes at other places."""

        def apply_chat_template(self, told: Any, tokenize: bool) -> str:
            return "".join(f"U{each['content']}E" for each in told)

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [1]

        def decode(self, token_ids: Any, skip_special_tokens: bool) -> str:
            return " ".join(map(str, token_ids))

    assert TitleReader(Shifted()).title_of(array("i", [256, 0, 65536, 1, 77])) == "77"


def test_titles_are_made_on_a_thread_of_their_own(tokenizer: Any) -> None:
    titler, told = Titler(lambda: tokenizer), Future[tuple[str, str]]()
    titler.request_title(
        TokenRun(ids(tokenizer, ("user", "Hello there"))),
        lambda title: told.set_result((title, threading.current_thread().name)),
    )
    title, thread = told.result(PATIENCE_S)
    titler.close()
    assert title == "Hello there" and thread.startswith("cwm-titles")


def test_a_tokenizer_that_cannot_be_loaded_costs_titles_only(caplog: pytest.LogCaptureFixture) -> None:
    loads = []

    def load() -> Any:
        loads.append(1)
        raise OSError("a s3cret path")

    titler = Titler(load)
    for _ in range(3):
        titler.request_title(TokenRun(array("i", [1])), lambda title: None)
    titler._thread.submit(lambda: None).result(PATIENCE_S)
    titler.close()
    assert len(loads) == 1
    assert "OSError" in caplog.text and "s3cret" not in caplog.text


def test_ids_that_cannot_be_decoded_stop_no_other_title_and_are_not_logged(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    titler, told = Titler(lambda: tokenizer), Future[str]()

    class Broken(array):
        def __getitem__(self, _: Any) -> Any:
            raise ValueError("a s3cret prompt")

    titler.request_title(TokenRun(Broken("i", [1])), lambda title: None)
    titler.request_title(TokenRun(ids(tokenizer, ("user", "Hello"))), told.set_result)
    assert told.result(PATIENCE_S) == "Hello"
    titler.close()
    assert "s3cret" not in caplog.text


def test_too_many_heads_at_once_wait_for_their_next_turn(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setattr("cwm_connector.sessions.titles.MAX_WAITING", 2)
    go = threading.Event()

    def load() -> Any:
        go.wait(PATIENCE_S)
        return tokenizer

    titler, titles = Titler(load), list[str]()
    for _ in range(5):
        titler.request_title(TokenRun(ids(tokenizer, ("user", "Hello"))), titles.append)
    go.set()
    titler._thread.submit(lambda: None).result(PATIENCE_S)
    titler.close()
    assert titles == ["Hello", "Hello"]
