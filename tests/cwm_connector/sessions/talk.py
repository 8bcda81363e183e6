"""Clients that talk to a session index in requests of vLLM's own, and say with hints what their requests are for."""

from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from cwm_connector.sessions.index import SessionIndex
from cwm_connector.sessions.views import HeadSnapshot
from tests.support.vllm_parts import BLOCK_TOKENS, request

CHUNK = 256


def words(seed: int, count: int) -> list[int]:
    """Return tokens that no other seed has."""
    return list(range(seed * 100_000, seed * 100_000 + count))


SYSTEM = words(1, 300)
"""More tokens than make a branch part of the main line."""


class Talk:
    """An index, and requests that are added, computed and finished in it."""

    def __init__(self, **more: Any) -> None:
        self.index = SessionIndex("m", BLOCK_TOKENS, lambda salt: None, chunk_tokens=CHUNK, **more)
        self._requests = 0

    def begin(
        self,
        prompt: list[int],
        session: str | None = "alice",
        *,
        salt: str | None = None,
        streams: bool = True,
        schema: bool = False,
    ) -> Any:
        """Add a request of which nothing is computed yet."""
        self._requests += 1
        one = request(prompt, f"r{self._requests}", session_id=session, cache_salt=salt)
        one.sampling_params = SamplingParams(
            output_kind=RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(json={"type": "object"}) if schema else None,
        )
        self.index.request_added(one)
        return one

    def answer(self, one: Any, answer: list[int]) -> Any:
        """Compute the prompt and the answer. The last sampled token is not computed, as in vLLM."""
        one.append_output_token_ids([*answer, 7])
        one.num_computed_tokens = one.num_tokens - 1
        return one

    def finish(self, one: Any) -> None:
        self.index.request_finished(one)

    def say(self, prompt: list[int], answer: list[int], session: str | None = "alice", **more: Any) -> list[int]:
        """Make a request and let it end. Return what the next prompt begins with."""
        self.finish(self.answer(self.begin(prompt, session, **more), answer))
        return [*prompt, *answer]

    def cut_off(self, prompt: list[int], computed: int, session: str | None = "alice", **more: Any) -> None:
        """Make a request whose client goes away when `computed` tokens of the prompt are computed."""
        one = self.begin(prompt, session, **more)
        one.num_computed_tokens = computed
        self.finish(one)

    def frozen(self, session: str = "alice", head: str | None = None) -> HeadSnapshot:
        return self.index.snapshot(session, head)

    def takes(self, session: str = "alice", head: str | None = None) -> list[int]:
        """Return the tokens that a freeze takes."""
        return list(self.frozen(session, head).token_ids)


@pytest.fixture
def talk() -> Talk:
    return Talk()


def conversation(talk: Talk, session: str | None = "alice", turns: int = 3) -> list[int]:
    said = SYSTEM
    for turn in range(turns):
        said = talk.say([*said, *words(10 + turn, 400)], words(20 + turn, 200), session)
    return said
