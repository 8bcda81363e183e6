"""LoRA adapters on a real engine: a window is loaded for the adapter that computed it, whatever its name."""

import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.adapters import write_adapter
from tests.support.api import Api, Completion, Measured
from tests.support.engine import Engine, EngineOptions, Launch
from tests.support.mcp_client import Tools, mcp_client

COMPARED = 16
TOKENS, BLOCK = 700, 128
WHOLE = TOKENS // BLOCK * BLOCK


@pytest.fixture(scope="module")
def poet(tmp_path_factory: pytest.TempPathFactory, shallow_model: Path) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "poet", shallow_model, seed=1)


@pytest.fixture(scope="module")
def engine(launch: Launch, shallow_model: Path, poet: Path) -> Iterator[Engine]:
    arguments = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"poet={poet}")
    options = EngineOptions(
        model=shallow_model,
        max_model_len=2048,
        kv_tokens=16_384,
        arguments=arguments,
        settings={
            "CWM_AUTO_THAW": "off",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_SERVER_DEV_MODE": "1",
        },
    )
    with Engine(options, launch) as running:
        yield running


def _noise(seed: int, tokens: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(100, 40_000) for _ in range(tokens)]


PROMPT = _noise(1, TOKENS)


async def _say(api: Api, salt: str | None = None) -> Measured:
    return await api.measure([*PROMPT, *_noise(2, 9)], COMPARED, cache_salt=salt, logprobs=5)


def _same(one: Completion, other: Completion) -> bool:
    return (one.token_ids, one.top_logprobs) == (other.token_ids, other.top_logprobs)


async def _thawed(cwm: Tools, window: str) -> str:
    return str((await cwm.call("window_thaw", window_name=window))["cache_salt"])


def _post(engine: Engine, path: str, **body: object) -> None:
    httpx.post(f"{engine.url}{path}", json=body or None, timeout=60, trust_env=False).raise_for_status()


async def test_a_window_of_an_adapter_is_loaded_bit_for_bit_for_these_weights_alone(engine: Engine, poet: Path) -> None:
    plain, adapted = engine.api, Api(engine.url, "poet")
    async with mcp_client(engine) as cwm:
        await plain.complete(PROMPT, 2, session_id="plain")
        await adapted.complete(PROMPT, 2, session_id="poem")
        expected, without = await _say(adapted), await _say(plain)
        assert expected.local_hits == without.local_hits == WHOLE
        assert not _same(expected.completion, without.completion), "the adapter changes nothing"
        for session in ("plain", "poem"):
            frozen = await cwm.call("window_freeze", session_id=session, window_name=session)
            assert frozen["new_bytes"] > 0, "the two have no chunk in common"
    engine.restart()
    async with mcp_client(engine) as cwm:
        resumed = await _say(adapted, await _thawed(cwm, "poem"))
        assert resumed.restored == WHOLE and _same(resumed.completion, expected.completion)
        for api, window in ((plain, "poem"), (adapted, "plain")):
            wrong = await _say(api, await _thawed(cwm, window))
            assert wrong.restored == 0, f"the window {window!r} was loaded for another adapter"
        own = await _say(plain, await _thawed(cwm, "plain"))
        assert own.restored == WHOLE and _same(own.completion, without.completion)

        # Other weights under the same name and path, while the engine runs.
        write_adapter(poet, engine.options.model, seed=2)
        _post(engine, "/v1/load_lora_adapter", lora_name="poet", lora_path=str(poet), load_inplace=True)
        assert (await _say(adapted, await _thawed(cwm, "poem"))).restored == 0
        _post(engine, "/reset_prefix_cache?reset_external=true")
        cold = await _say(adapted, "cold")
        replaced = await _say(adapted, await _thawed(cwm, "poem"))
        assert replaced.restored == 0 and _same(replaced.completion, cold.completion)
        assert not _same(cold.completion, expected.completion)
        await adapted.complete(PROMPT, 2, session_id="other poem")
        frozen = await cwm.call("window_freeze", session_id="other poem", window_name="other-poem")
        assert frozen["new_bytes"] > 0
        assert (await _say(adapted, await _thawed(cwm, "other-poem"))).restored == WHOLE
