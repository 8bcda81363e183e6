"""Models with several kinds of attention: what is thawed is bit for bit what vLLM's own prefix cache would have given.

Each case is a small checkpoint with random weights, frozen, killed with -9 and thawed under a new salt. An engine takes
two starts for each, so `make test` runs one of them. CWM_TEST_ARCHITECTURES=all runs every one.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.api import Completion, Measured
from tests.support.checkpoints import checkpoint
from tests.support.chunks import chunk_files, flip_a_byte
from tests.support.engine import Engine, EngineOptions
from tests.support.mcp_client import Tools, mcp_client

COMPARED = 16
"""Tokens of an answer that are compared, with their logprobs."""
_STATES = ("--max-num-batched-tokens", "256")
"""vLLM's CPU kernel for Mamba-2 fails if a prompt's step passes the end of a block, and can fail with this too."""


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint, a session of `prompt` and `answer` tokens, and where its window can be resumed."""

    name: str
    prompt: int
    answer: int
    boundaries: tuple[int, ...]
    arguments: tuple[str, ...] = ()


CASES = (
    Case("gemma3", 900, 300, (896, 1152)),
    Case("falcon-h1", 900, 300, (768, 1024), _STATES),
    Case("qwen3-next", 2000, 1900, (1920, 3840)),
    Case("gpt-oss", 900, 300, (896, 1152)),
    Case("gemma4", 1100, 1000, (1024, 2048)),
    Case("llama4", 900, 300, (1152,)),
    Case("gemma2", 900, 300, (896, 1152)),
    Case("mistral", 900, 300, (1152,)),
    Case("granite", 900, 300, (768, 1024), _STATES),
    Case("nemotron-h", 900, 300, (768, 1024), _STATES),
)
"""The first one runs always."""
CHOSEN = os.environ.get("CWM_TEST_ARCHITECTURES", "")


def _chosen() -> list[Case]:
    if CHOSEN == "all":
        return list(CASES)
    return [case for case in CASES if case.name in CHOSEN.split(",")] if CHOSEN else list(CASES[:1])


@dataclass(slots=True)
class Told:
    """The answers of the engine that was killed, from its own prefix cache."""

    case: Case
    ids: list[int] = field(repr=False)
    frozen: dict[str, Any]
    next_answer: Measured
    branch: list[int] = field(repr=False)
    branch_answer: Measured


@pytest.fixture(scope="module", params=_chosen(), ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


@pytest.fixture(scope="module")
def engine(case: Case) -> Iterator[Engine]:
    options = EngineOptions(
        model=checkpoint(case.name),
        dtype="bfloat16",
        max_model_len=4096,
        kv_tokens=100_000,
        arguments=case.arguments,
        settings={"CWM_AUTO_THAW": "off"},
    )
    with Engine(options) as running:
        yield running


def _noise(seed: int, tokens: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(100, 40_000) for _ in range(tokens)]


async def _say(engine: Engine, ids: list[int], salt: str | None = None, session: str | None = None) -> Measured:
    return await engine.api.measure(ids, COMPARED, cache_salt=salt, session_id=session, logprobs=5)


def _same(one: Completion, other: Completion) -> bool:
    return (one.token_ids, one.top_logprobs) == (other.token_ids, other.top_logprobs)


async def _tell(engine: Engine, cwm: Tools, case: Case) -> Told:
    """Hold a session, freeze it, and ask what comes next. The freeze leaves vLLM what a resume at its end needs."""
    prompt = _noise(1, case.prompt)
    first = await engine.api.complete(prompt, case.answer, session_id="told")
    ids = [*prompt, *first.token_ids]
    frozen = await cwm.call("window_freeze", session_id="told", window_name="told")
    branch = [*ids[: case.boundaries[0] + 2], *_noise(2, 60)]
    return Told(
        case=case,
        ids=[*ids, *_noise(3, 9)],
        frozen=frozen,
        next_answer=await _say(engine, [*ids, *_noise(3, 9)]),
        branch=branch,
        branch_answer=await _say(engine, branch),
    )


async def test_a_thaw_after_kill_9_gives_what_vllm_s_own_cache_gave_bit_for_bit(engine: Engine, case: Case) -> None:
    async with mcp_client(engine) as cwm:
        told = await _tell(engine, cwm, case)
        assert tuple(told.frozen["boundaries"]) == case.boundaries
        assert told.frozen["resumable_tokens"] == case.boundaries[-1] and told.frozen["not_resumable"]
        assert told.next_answer.local_hits == case.boundaries[-1]
        assert told.branch_answer.local_hits == case.boundaries[0]
        other = await engine.api.complete(_noise(9, case.prompt), case.answer, session_id="damaged")
        await cwm.call("window_freeze", session_id="damaged", window_name="damaged")
        status = await cwm.call("window_status", window_name="damaged", include_blocks=True)
    engine.restart()
    for file in chunk_files(engine.home, status["blocks"][-1]["hash"]):
        flip_a_byte(file, -9000)
    async with mcp_client(engine) as cwm:
        thawed = await cwm.call("window_thaw", window_name="told")
        assert thawed["restorable_tokens"] == case.boundaries[-1] and not thawed["partial"]
        resumed = await _say(engine, told.ids, thawed["cache_salt"])
        assert resumed.restored == case.boundaries[-1]
        assert _same(resumed.completion, told.next_answer.completion)

        again = await cwm.call("window_thaw", window_name="told")
        branched = await _say(engine, told.branch, again["cache_salt"])
        assert branched.restored == case.boundaries[0]
        assert _same(branched.completion, told.branch_answer.completion)
        after = await _say(engine, told.ids, again["cache_salt"])
        more = case.boundaries[-1] - case.boundaries[0]
        assert (after.local_hits, after.restored) == (case.boundaries[0] if more else case.boundaries[-1], more)
        assert _same(after.completion, told.next_answer.completion)

        await _load_damaged(engine, cwm, case, [*_noise(9, case.prompt), *other.token_ids, *_noise(4, 9)])


async def _load_damaged(engine: Engine, cwm: Tools, case: Case, prompt: list[int]) -> None:
    """A load that finds a flipped byte is given up as a whole, and the engine computes the prompt."""
    cold = await _say(engine, prompt, "cold")
    blind = await cwm.call("window_thaw", window_name="damaged", prewarm=False)
    loaded = await _say(engine, prompt, blind["cache_salt"])
    assert _same(loaded.completion, cold.completion)
    honest = await cwm.call("window_thaw", window_name="damaged")
    assert honest["partial"] and honest["restorable_tokens"] < case.boundaries[-1]
