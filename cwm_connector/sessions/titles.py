"""Titles of sessions: the first words of the user, decoded from the token ids.

The engine has only tokens. They are decoded with the model's tokenizer, once for each head, on the `cwm-titles` thread,
so serving never waits. A head whose tokens can't be decoded has no title. A title is part of a prompt: it is sent to
clients of the control socket and never logged.
"""

import logging
import re
import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Final, Protocol

from cwm_connector.core.sequences import common_end_length
from cwm_connector.sessions.token_run import TokenRun

logger = logging.getLogger(__name__)

MAX_CHARACTERS: Final = 80
"""Length of a title."""
MAX_WAITING: Final = 256
"""Heads that wait for a title. Further heads get none until their next request."""
_PLAIN_TOKENS: Final = 64
"""Tokens that are decoded if the model has no chat template."""
_MESSAGE_TOKENS: Final = 2048
"""Tokens of a user's message that are decoded. Some clients put long notes in front of the user's words."""
_SEARCHED_TOKENS: Final = 65_536
"""Tokens that are searched for the start of the user's message. System prompts with tools are long."""
TITLED_TOKENS: Final = _SEARCHED_TOKENS + _MESSAGE_TOKENS
"""Tokens at the start of a head from which its title is made."""
_NOTES: Final = re.compile(r"<(system-reminder|environment_context)>.*?(</\1>|\Z)", re.DOTALL)
"""Text that Claude Code and Codex put into the user's message."""


class Tokenizer(Protocol):
    """The methods of a Hugging Face tokenizer that are used here."""

    def apply_chat_template(self, conversation: list[dict[str, str]], *, tokenize: bool) -> Any: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class TitleReader:
    """A tokenizer, and the marks with which the model's chat template opens and closes a user's message."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        opening, self._closing = _marks(tokenizer)
        self._opening = tokenizer.encode(opening, add_special_tokens=False) if opening else []

    def title_of(self, token_ids: "array[int]") -> str | None:
        """Return the first words of the first user message, or of the whole text if there are no messages."""
        begin = _end_of(self._opening, token_ids)
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
    """Return the text before and after each user message, empty if there is no template or it can't be used."""
    sample = [{"role": role, "content": f"<{role}-{turn}>"} for turn in "12" for role in ("user", "assistant")]
    try:
        text = str(tokenizer.apply_chat_template(sample, tokenize=False))
    except Exception:
        return "", ""
    before_first, _, rest = text.partition("<user-1>")
    between, _, _ = rest.partition("<user-2>")
    after_first, _, before_second = between.partition("<assistant-1>")
    shared = common_end_length(before_first, before_second)
    return before_first[len(before_first) - shared :].rstrip(), after_first.strip().split("\n")[0]


def _end_of(mark: list[int], token_ids: "array[int]") -> int | None:
    """Return the index behind the first occurrence of `mark`, or None if there is none."""
    if not mark:
        return None
    searched, wanted = token_ids[:_SEARCHED_TOKENS].tobytes(), array(token_ids.typecode, mark).tobytes()
    at = searched.find(wanted)
    while at >= 0 and at % token_ids.itemsize:
        at = searched.find(wanted, at + 1)
    return None if at < 0 else at // token_ids.itemsize + len(mark)


class Titler:
    """Finds titles one after another on a thread of its own."""

    def __init__(self, load_tokenizer: Callable[[], Tokenizer | None]) -> None:
        """Start without a tokenizer.

        `load_tokenizer` runs on the titler's thread when the first title is requested. It returns None if the model has
        no tokenizer.
        """
        self._load = load_tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cwm-titles")
        self._free_places = threading.Semaphore(MAX_WAITING)

    def request_title(self, tokens: TokenRun, notify: Callable[[str], None]) -> None:
        """Call `notify` with the title, later and on the titler's thread. It is not called if there is no title.

        Any thread. Returns at once.
        """
        if self._free_places.acquire(blocking=False):
            self._thread.submit(self._find_title, tokens, notify)

    def close(self) -> None:
        """Stop the thread without waiting for it. The heads that still wait get no title."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _find_title(self, tokens: TokenRun, notify: Callable[[str], None]) -> None:
        try:
            if (reader := self._reader) is not None and (title := reader.title_of(tokens.packed())) is not None:
                notify(title)
        except Exception as problem:
            # Only the type is logged, because the text may contain a prompt. A request can have ids that no tokenizer
            # produces.
            logger.debug("a session has no title: %s", type(problem).__name__)
        finally:
            self._free_places.release()

    @cached_property
    def _reader(self) -> TitleReader | None:
        try:
            tokenizer = self._load()
        except Exception as problem:
            logger.warning("sessions have no titles: the tokenizer can't be loaded (%s)", type(problem).__name__)
            return None
        return None if tokenizer is None else TitleReader(tokenizer)
