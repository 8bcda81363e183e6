"""A session as a test holds it: the exact token ids so far, and one request after another."""

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.support.api import Api, Completion, Measured
from tests.support.texts import prompt_of

WORDS = 24
"""Tokens that an answer is compared over."""
SCRIPT = 200
"""Tokens after which a talk repeats itself."""


class Talk:
    """`ids` is everything said: prompts and answers. One request at a time."""

    def __init__(
        self, api: Api, session_id: str | None, cache_salt: str | None = None, script: Sequence[int] = ()
    ) -> None:
        self._api = api
        self._script = script
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

    def cue(self, tokens: int = 8) -> list[int]:
        """How the recitation goes on from here."""
        return [self._script[(len(self.ids) + number) % len(self._script)] for number in range(tokens)]

    def branch(self, session_id: str | None, cache_salt: str | None = None) -> "Talk":
        """The same words so far, said by somebody else."""
        other = Talk(self._api, session_id, cache_salt, self._script)
        other.ids = list(self.ids)
        return other


async def talked(api: Api, session_id: str, seed: int, tokens: int, answer: int = 12) -> Talk:
    """A session of one turn: a prompt of `tokens` token ids, and an answer that goes on with it.

    8 tokens less than a number of full blocks is a good length: the answer then completes the last one.

    The prompt is a part of a log over and over. Reciting what stands in the context is what a small model does
    without hesitation, and what it can't do when the restored keys and values are wrong.
    """
    talk = Talk(api, session_id, script=await prompt_of(api, seed, SCRIPT))
    await talk.say(talk.cue(tokens), answer)
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
