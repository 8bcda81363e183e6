"""Titles of sessions: the first words that a user said, read off the token ids.

The engine has tokens only, so they are decoded with the model's own tokenizer, once for each head, on a thread of its
own: serving never waits for it. What can't be decoded has no title. A title is part of a prompt: it is told to who asks
over the control socket and never logged.
"""

import itertools
import logging
import re
import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Final, Protocol

logger = logging.getLogger(__name__)

MAX_CHARACTERS: Final = 80
MAX_WAITING: Final = 256
"""Heads that wait for their title; more of them stay without until they are spoken to again."""
_PLAIN_TOKENS: Final = 64
_MESSAGE_TOKENS: Final = 2048
"""Of a user's message; some clients put long notes in front of the words."""
_SEARCHED_TOKENS: Final = 65_536
"""For the place where the user begins: system prompts with tools are long."""
_NOTES: Final = re.compile(r"<(system-reminder|environment_context)>.*?(</\1>|\Z)", re.DOTALL)
"""What Claude Code and Codex say in their user's name."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    def apply_chat_template(self, conversation: list[dict[str, str]], *, tokenize: bool) -> Any: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class TitleReader:
    """A tokenizer, and how the model's chat template opens and closes a user's message."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        opening, self._closing = _marks(tokenizer)
        self._opening = tokenizer.encode(opening, add_special_tokens=False) if opening else []

    def title_of(self, token_ids: "array[int]") -> str | None:
        """The first words of the first user message, or of the whole text where there are no messages."""
        begin = _after(token_ids, self._opening)
        if begin is None:
            text = self._tokenizer.decode(list(token_ids[:_PLAIN_TOKENS]), skip_special_tokens=True)
        else:
            message = token_ids[begin : begin + _MESSAGE_TOKENS]
            text = self._tokenizer.decode(list(message), skip_special_tokens=False)
            text = text.split(self._closing, 1)[0] if self._closing else text
        words = " ".join(_NOTES.sub(" ", text).split())
        printable = "".join(character for character in words if character.isprintable())
        if len(printable) <= MAX_CHARACTERS:
            return printable or None
        return printable[: MAX_CHARACTERS - 1].rsplit(" ", 1)[0] + "…"


def _marks(tokenizer: Tokenizer) -> tuple[str, str]:
    """What stands before and behind every message of the user; empty where there is no template, or an odd one."""
    told = [{"role": role, "content": f"<{role}-{turn}>"} for turn in "12" for role in ("user", "assistant")]
    try:
        text = str(tokenizer.apply_chat_template(told, tokenize=False))
    except Exception:
        return "", ""
    before_first, _, rest = text.partition("<user-1>")
    between, _, _ = rest.partition("<user-2>")
    behind_first, _, before_second = between.partition("<assistant-1>")
    return _common_end(before_first, before_second).rstrip(), behind_first.strip().split("\n")[0]


def _common_end(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return one[len(one) - alike :]


def _after(token_ids: "array[int]", mark: list[int]) -> int | None:
    """Where the first occurrence of `mark` ends."""
    if not mark:
        return None
    searched, wanted = token_ids[:_SEARCHED_TOKENS].tobytes(), array(token_ids.typecode, mark).tobytes()
    at = searched.find(wanted)
    while at >= 0 and at % token_ids.itemsize:
        at = searched.find(wanted, at + 1)
    return None if at < 0 else at // token_ids.itemsize + len(mark)


class Titler:
    """Finds titles one after another; `request_title` may be called from any thread and returns at once."""

    def __init__(self, load_tokenizer: Callable[[], Tokenizer | None]) -> None:
        """`load_tokenizer` runs on the titler's thread when the first title is wanted; None: the model has none."""
        self._load = load_tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cwm-titles")
        self._places = threading.Semaphore(MAX_WAITING)

    def request_title(self, token_ids: "array[int]", tell: Callable[[str], None]) -> None:
        """`tell` is called with the title, on the titler's thread; never where there is none to be had."""
        if self._places.acquire(blocking=False):
            self._thread.submit(self._request_title, token_ids, tell)

    def close(self) -> None:
        """What still waits stays without a title."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _request_title(self, token_ids: "array[int]", tell: Callable[[str], None]) -> None:
        try:
            if (reader := self._reader) is not None and (title := reader.title_of(token_ids)) is not None:
                tell(title)
        except Exception as problem:
            # Its text may hold a prompt, so the kind has to do; ids that no tokenizer made can be the reason.
            logger.debug("a session stays without a title: %s", type(problem).__name__)
        finally:
            self._places.release()

    @cached_property
    def _reader(self) -> TitleReader | None:
        try:
            tokenizer = self._load()
        except Exception as problem:
            logger.warning("sessions stay without titles: the tokenizer can't be loaded (%s)", type(problem).__name__)
            return None
        return None if tokenizer is None else TitleReader(tokenizer)
