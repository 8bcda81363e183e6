"""Other models and options: what is thawed is bit for bit what vLLM's own prefix cache would have given.

Each case is a small checkpoint with random weights, frozen, killed with -9 and thawed under a new salt. An engine takes
two starts for each, so `make test` runs one of them. CWM_TEST_ARCHITECTURES=all runs every one, and
CWM_TEST_ARCHITECTURES=gemma4,llama4 those two.
"""

import asyncio
import os
import random
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from cwm_mcp.serve import Build, installed_build
from tests.support import other_weights
from tests.support.api import Completion, Measured
from tests.support.checkpoints import checkpoint
from tests.support.chunks import chunk_files, flip_a_byte
from tests.support.engine import Engine, EngineOptions, Launch, compute_threads
from tests.support.machine import from_proc
from tests.support.mcp_client import ToolError, Tools, mcp_client

COMPARED = 16
"""Tokens of an answer that are compared, with their logprobs."""
_ANSWER = 10
"""Tokens of the answer that ends a session. They complete its last block."""
_STATES = ("--max-num-batched-tokens", "256")
"""vLLM's CPU kernel for Mamba-2 fails if a prompt's step passes the end of a block, and can fail with this too."""


_ONE_GROUP = ("--disable-hybrid-kv-cache-manager",)
_NGRAM = ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}')
_NO_SPLIT = {"VLLM_CPU_ATTN_SPLIT_KV": "0"}
"""vLLM's CPU kernel sums what earlier calls left, for layers with sinks and a window in one group with other layers."""
_LETTERS: Mapping[str, Any] = {"structured_outputs": {"regex": "[a-z ]{900}"}}


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint, a session of `prompt` tokens and an answer, and where its window can be resumed."""

    name: str
    prompt: int
    boundaries: tuple[int, ...]
    """For full attention alone, which can be resumed after every block: the block of a branch, and the last one."""
    arguments: tuple[str, ...] = ()
    model: str = ""
    """The checkpoint's name, if it is not the case's."""
    everywhere: bool = False
    """The model has full attention alone."""
    may_have_more: bool = False
    """vLLM may still have the state where the last prompt ended, which depends on how long its blocks are."""
    ranks: int = 1
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of each request."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables of the engine."""


CASES = (
    Case("gemma3-tp2", 890, (768, 896), model="gemma3", ranks=2),
    Case("gemma3", 890, (768, 896)),
    Case("llama-tp2", 890, (768, 896), model="llama", ranks=2, everywhere=True),
    Case("gemma3-one-group", 890, (768, 896), _ONE_GROUP, "gemma3", everywhere=True),
    Case("gpt-oss-one-group", 890, (768, 896), _ONE_GROUP, "gpt-oss", everywhere=True, settings=_NO_SPLIT),
    Case("llama-ngram", 890, (768, 896), _NGRAM, "llama", everywhere=True),
    Case("gemma3-ngram", 890, (768, 896), _NGRAM, "gemma3"),
    Case("llama-fp8", 890, (768, 896), ("--kv-cache-dtype", "fp8"), "llama", everywhere=True),
    Case("llama-structured", 890, (768, 896), model="llama", everywhere=True, fields=_LETTERS),
    Case("falcon-h1", 1020, (768, 1024), _STATES),
    Case("qwen3-next", 3835, (3840,), may_have_more=True),
    Case("gpt-oss", 890, (768, 896)),
    Case("gemma4", 2040, (1024, 2048)),
    Case("llama4", 890, (256, 512, 768, 896)),
    Case("gemma2", 890, (768, 896)),
    Case("mistral", 890, (896,)),
    Case("granite", 1020, (768, 1024), _STATES),
    Case("nemotron-h", 1020, (768, 1024), _STATES),
)
CHOSEN = os.environ.get("CWM_TEST_ARCHITECTURES", "")
DEFAULT = "gemma3-tp2" if installed_build() is Build.CPU else "gemma3"
"""The one that runs always. It has two ranks where they need no second GPU."""


def _chosen() -> list[Case]:
    if CHOSEN == "all":
        return list(CASES)
    return [case for case in CASES if case.name in (CHOSEN or DEFAULT).split(",")]


@dataclass(slots=True)
class Told:
    """The answers of the engine that was killed, from its own prefix cache."""

    case: Case
    boundaries: tuple[int, ...]
    ids: list[int] = field(repr=False)
    frozen: dict[str, Any]
    next_answer: Measured
    branch: list[int] = field(repr=False)
    branch_answer: Measured


@pytest.fixture(scope="module", params=_chosen(), ids=lambda case: case.name)
def chosen(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    flags = from_proc("/proc/cpuinfo", "flags").split()
    if "fp8" in chosen.arguments and installed_build() is Build.CPU and "avx512f" not in flags:
        pytest.skip("vLLM's CPU build takes an fp8 KV cache with AVX-512 or AMX only")
    return chosen


@pytest.fixture(scope="module")
def engine(chosen: Case, launch: Launch) -> Iterator[Engine]:
    ranks = ("--tensor-parallel-size", str(chosen.ranks)) if chosen.ranks > 1 else ()
    # Otherwise vLLM gives each rank a NUMA node of its own, and each waits for the other on all cores.
    of_ranks = compute_threads(1) if ranks else {}
    options = EngineOptions(
        model=checkpoint(chosen.model or chosen.name),
        dtype="bfloat16",
        max_model_len=4096,
        kv_tokens=100_000,
        arguments=(*chosen.arguments, *ranks, "--worker-extension-cls", other_weights.CLASS),
        settings={"CWM_AUTO_THAW": "off", "VLLM_SERVER_DEV_MODE": "1", **of_ranks, **chosen.settings},
    )
    with Engine(options, launch) as running:
        yield running


@pytest.fixture(scope="module")
def case(chosen: Case, engine: Engine) -> Case:
    """Return the case for blocks as long as vLLM's are on this machine, which its kernels for states decide."""
    unit = asyncio.run(engine.api.block_tokens())
    boundaries = tuple(end // unit * unit for end in chosen.boundaries)
    return replace(chosen, prompt=chosen.prompt - chosen.boundaries[-1] + boundaries[-1], boundaries=boundaries)


def _noise(seed: int, tokens: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(100, 40_000) for _ in range(tokens)]


async def _say(engine: Engine, case: Case, ids: list[int], salt: str | None = None) -> Measured:
    return await engine.api.measure(ids, COMPARED, cache_salt=salt, logprobs=5, fields=case.fields)


def _same(one: Completion, other: Completion) -> bool:
    return (one.token_ids, one.top_logprobs) == (other.token_ids, other.top_logprobs)


async def _tell(engine: Engine, cwm: Tools, case: Case) -> Told:
    """Hold a session, freeze it, and ask what comes next. The freeze leaves vLLM what a resume at its end needs."""
    prompt = _noise(1, case.prompt)
    first = await engine.api.complete(prompt, _ANSWER, session_id="told", fields=case.fields)
    ids = [*prompt, *first.token_ids]
    frozen = await cwm.call("window_freeze", session_id="told", window_name="told")
    boundaries = tuple(frozen.get("boundaries") or case.boundaries)
    branch = [*ids[: boundaries[0] + 2], *_noise(2, 60)]
    return Told(
        case=case,
        boundaries=boundaries,
        ids=[*ids, *_noise(3, 9)],
        frozen=frozen,
        next_answer=await _say(engine, case, [*ids, *_noise(3, 9)]),
        branch=branch,
        branch_answer=await _say(engine, case, branch),
    )


async def test_a_thaw_after_kill_9_gives_what_vllm_s_own_cache_gave_bit_for_bit(engine: Engine, case: Case) -> None:
    async with mcp_client(engine) as cwm:
        told = await _tell(engine, cwm, case)
        boundaries = told.boundaries
        assert told.frozen["resumable_tokens"] == boundaries[-1] == case.boundaries[-1]
        assert boundaries == case.boundaries or case.may_have_more, told.frozen
        assert (told.frozen.get("boundaries") is None) is case.everywhere
        assert bool(told.frozen.get("not_resumable")) is not case.everywhere
        assert told.next_answer.local_hits == boundaries[-1]
        assert told.branch_answer.local_hits == boundaries[0]
        damaged = await _freeze_to_be_damaged(engine, cwm, case)
        status = await cwm.call("window_status", window_name="damaged", include_blocks=True)
        if case.ranks > 1:
            await _lose_a_rank(engine, cwm)
    engine.restart()
    files = chunk_files(engine.home, status["blocks"][-1]["hash"])
    assert len(files) == case.ranks
    flip_a_byte(max(files), -9000)
    async with mcp_client(engine) as cwm:
        listed = await cwm.call("window_list")
        assert {window["name"] for window in listed["windows"]} == {"told", "damaged"}
        thawed = await cwm.call("window_thaw", window_name="told")
        assert thawed["restorable_tokens"] == boundaries[-1] and not thawed["partial"]
        resumed = await _say(engine, case, told.ids, thawed["cache_salt"])
        assert resumed.restored == boundaries[-1]
        assert _same(resumed.completion, told.next_answer.completion)

        again = await cwm.call("window_thaw", window_name="told")
        branched = await _say(engine, case, told.branch, again["cache_salt"])
        assert branched.restored == boundaries[0]
        assert _same(branched.completion, told.branch_answer.completion)
        after = await _say(engine, case, told.ids, again["cache_salt"])
        more = boundaries[-1] - boundaries[0]
        assert (after.local_hits, after.restored) == (boundaries[0] if more else boundaries[-1], more)
        assert _same(after.completion, told.next_answer.completion)

        await _load_damaged(engine, cwm, case, [*damaged, *_noise(4, 9)])


async def _freeze_to_be_damaged(engine: Engine, cwm: Tools, case: Case) -> list[int]:
    """Freeze another session and return its tokens.

    Without boundaries its KV must be a prompt's, for a recompute to be equal bit for bit. An answer's KV is rounded in
    another way.
    """
    answer = 1 if case.everywhere else _ANSWER
    prompt = _noise(9, case.prompt + _ANSWER - answer)
    answered = await engine.api.complete(prompt, answer, session_id="damaged", fields=case.fields)
    await cwm.call("window_freeze", session_id="damaged", window_name="damaged")
    return [*prompt, *answered.token_ids]


async def _lose_a_rank(engine: Engine, cwm: Tools) -> None:
    """Kill one rank's process. A freeze then ends with an error, and the engine ends by itself."""
    await engine.api.complete(_noise(5, 600), 1, session_id="lost")
    ranks = re.findall(r"\(Worker_TP1 pid=(\d+)\)", engine.log.read_text(errors="replace"))
    os.kill(int(ranks[-1]), signal.SIGKILL)
    with pytest.raises(ToolError):
        await cwm.call("window_freeze", session_id="lost", window_name="lost")
    async with asyncio.timeout(60):
        while engine.processes():  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def _load_damaged(engine: Engine, cwm: Tools, case: Case, prompt: list[int]) -> None:
    """A load that finds a flipped byte is given up, and the engine computes the prompt.

    Without boundaries it keeps what comes before the damaged chunk. vLLM's own cache gets as much of the other prompt,
    from a prompt as long as the one that was frozen. Kernels round by where a computation begins and how long it is.
    """
    if case.everywhere:
        kept = prompt[: case.boundaries[0] + 2]
        await _say(engine, case, [*kept, *_noise(7, case.prompt + _ANSWER - 1 - len(kept))], "cold")
    cold = await _say(engine, case, prompt, "cold")
    blind = await cwm.call("window_thaw", window_name="damaged", prewarm=False)
    loaded = await _say(engine, case, prompt, blind["cache_salt"])
    assert cold.local_hits == (case.boundaries[0] if case.everywhere else 0)
    assert _same(loaded.completion, cold.completion)
    honest = await cwm.call("window_thaw", window_name="damaged")
    assert honest["partial"] and honest["restorable_tokens"] < case.boundaries[-1]


async def test_no_window_is_thawed_once_other_weights_have_taken_the_place_of_its_own(
    engine: Engine, case: Case
) -> None:
    """Only the last layer's KV changes, and no option."""
    async with mcp_client(engine) as cwm:
        await engine.api.complete(_noise(6, case.prompt + _ANSWER), 1, session_id="weights", fields=case.fields)
        await cwm.call("window_freeze", session_id="weights", window_name="weights")
        assert not (await cwm.call("window_thaw", window_name="weights"))["partial"]
        async with httpx.AsyncClient(base_url=engine.url, timeout=60, trust_env=False) as client:
            (await client.post("/collective_rpc", json={"method": "change_last_layer"})).raise_for_status()
        with pytest.raises(ToolError, match="weights were replaced while vLLM kept the KV") as refused:
            await cwm.call("window_thaw", window_name="weights")
        assert refused.value.code == 3001
