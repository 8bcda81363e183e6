"""A session as a test holds it: the exact token ids so far, and one request after another."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from tests.support.api import Api, Completion, Measured
from tests.support.texts import prompt_of

WORDS = 24
"""Tokens that an answer is compared over."""


class Talk:
    """`ids` is everything said: prompts and answers. One request at a time."""

    def __init__(self, api: Api, session_id: str | None, cache_salt: str | None = None) -> None:
        self._api = api
        self.session_id = session_id
        self.cache_salt = cache_salt
        self.ids: list[int] = []

    async def say(self, text: str | Sequence[int], max_tokens: int = WORDS, **how: Any) -> Measured:
        """Sends all of `ids` and `text`, and takes the answer into `ids`."""
        self.ids += await self._api.tokenize(text) if isinstance(text, str) else list(text)
        heard = await self._api.measure(
            self.ids, max_tokens, session_id=self.session_id, cache_salt=self.cache_salt, **how
        )
        self.ids += heard.completion.token_ids
        return heard

    @property
    def computed_tokens(self) -> int:
        """Tokens whose KV the engine has computed: all but the last one sampled."""
        return len(self.ids) - 1

    def full_blocks(self, block_tokens: int) -> int:
        """Tokens in the session's full blocks, generated ones included."""
        return self.computed_tokens // block_tokens * block_tokens

    def branch(self, session_id: str | None, cache_salt: str | None = None) -> "Talk":
        """The same words so far, said by somebody else."""
        other = Talk(self._api, session_id, cache_salt)
        other.ids = list(self.ids)
        return other


async def talked(api: Api, session_id: str, seed: int, tokens: int, answer: int = 40) -> Talk:
    """A session of one turn: a prompt of `tokens` token ids that ends where the log is to be repeated, and an answer.

    Repeating what stands in the context is what a small model does without hesitation, and what it can't do when the
    restored keys and values are wrong.
    """
    log = await prompt_of(api, seed, tokens)
    start = random.Random(seed).randrange(40, tokens // 2)
    again = await api.tokenize("\nThe same part of the log again:\n")
    talk = Talk(api, session_id)
    await talk.say([*log[: tokens - len(again) - 20], *again, *log[start : start + 20]], answer)
    return talk


async def speaking(api: Api, prompt: Sequence[int], max_tokens: int, session_id: str) -> "asyncio.Task[Completion]":
    """Sends a request and returns as soon as its first token has come, while it goes on."""
    begun = asyncio.Event()
    request = asyncio.create_task(
        api.complete(prompt, max_tokens, session_id=session_id, on_token=lambda _: begun.set())
    )
    first_token = asyncio.create_task(begun.wait())
    await asyncio.wait({request, first_token}, return_when=asyncio.FIRST_COMPLETED)
    first_token.cancel()
    return request


def sure_tokens(answer: Completion, margin: float = 0.25) -> tuple[int, ...]:
    """The leading tokens whose first choice is clear of the second.

    A recompute works in other batches than a prefix hit, and bf16 sums depend on them (0.04 in a logprob here), so
    past a near tie two right answers may differ.
    """
    for position, choices in enumerate(answer.top_logprobs):
        best, second = sorted(choices.values(), reverse=True)[:2]
        if best - second < margin:
            return answer.token_ids[:position]
    return answer.token_ids


def assert_equal_where_sure(heard: Completion, reference: Completion) -> None:
    """For an answer of which something was computed again; `reference` was asked with logprobs."""
    sure = sure_tokens(reference)
    assert len(sure) >= 8, "the reference hesitates too early to compare anything"
    assert heard.token_ids[: len(sure)] == sure
