"""A chat as exact token ids.

A server that builds the prompt from the text of earlier turns may tokenize an answer differently.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from tests.support.api import Api, Measured

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
MAX_ANSWER = 48
_END = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer. `prompt` holds everything before the answer, so it can be asked again."""

    question: str
    prompt: tuple[int, ...]
    heard: Measured

    @property
    def answer(self) -> str:
        return self.heard.completion.text.strip()


class Conversation:
    """All turns so far, as `ids`. The turns use ChatML, the model's own template."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.ids: tuple[int, ...] = ()
        self.computed_tokens = 0
        """How many of `ids` have KV in the engine. The last sampled token has none yet."""

    async def ask(self, question: str, *, session_id: str, about: str = "") -> Turn:
        """Ask a question and append it and its answer to `ids`. `about` is a text to put before the question."""
        if not self.ids:
            self.ids = await self._tokens(f"<|im_start|>system\n{SYSTEM}{_END}\n")
        turn = await ask_after(self._api, self.ids, question, session_id=session_id, about=about)
        said = turn.heard.completion.token_ids
        # The model ends its answer with <|im_end|> itself, unless it was cut off.
        (end,) = await self._tokens(_END)
        newline = await self._tokens("\n")
        self.computed_tokens = len(turn.prompt) + len(said) - 1
        self.ids = (*turn.prompt, *said, *(() if said[-1] == end else (end,)), *newline)
        return turn

    async def completes_a_block(self, questions: Iterable[str], block_tokens: int) -> bool:
        """Return True if the common beginning of these questions fills a block that the last turn left open."""
        asked = [await self._tokens(f"<|im_start|>user\n{question}") for question in questions]
        common = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*asked, strict=False))
        certain = len(self.ids) + len(list(common))
        return certain // block_tokens > self.computed_tokens // block_tokens

    async def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(await self._api.tokenize(text))


async def ask_after(
    api: Api,
    ids: tuple[int, ...],
    question: str,
    *,
    session_id: str | None,
    cache_salt: str | None = None,
    about: str = "",
) -> Turn:
    """Ask a question after `ids` and leave `ids` as they are: a branch.

    Sampling is greedy, so that the same question gets the same answer.
    """
    asked = await api.tokenize(f"<|im_start|>user\n{about}{question}{_END}\n<|im_start|>assistant\n")
    prompt = (*ids, *asked)
    heard = await api.measure(prompt, MAX_ANSWER, session_id=session_id, cache_salt=cache_salt, ignore_eos=False)
    return Turn(question, prompt, heard)
