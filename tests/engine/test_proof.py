"""A proof is what the session itself would have gone on with, and a thaw repeats it from the tiers."""

import asyncio
import json
import sys

from tests.support.engine import ROOT, Engine
from tests.support.mcp_client import mcp_client
from tests.support.talk import talked


async def prove(engine: Engine, window: str) -> tuple[int | None, dict[str, object]]:
    """`cwm prove`, as a shell runs it: the exit code and the result."""
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cwm_mcp.cli", "prove", window, "--json"),
        env={"CWM_HOME": str(engine.home), "CWM_VLLM_URL": engine.url},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    answer, _ = await command.communicate()
    return command.returncode, json.loads(answer)


async def test_a_proof_is_the_sessions_own_next_token_and_a_thaw_repeats_it(engine: Engine) -> None:
    talk = await talked(engine.api, "proved", 240, tokens=504)
    full = (talk.computed_tokens - 1) // await engine.api.block_tokens() * await engine.api.block_tokens()
    async with mcp_client(engine) as cwm:
        frozen = await cwm.call("window_freeze", session_id="proved", window_name="proved", prove=True)
        asked = await engine.api.complete(talk.ids[:-1], 1, session_id="proved", logprobs=1)
        assert asked.cached_tokens == full, "the reference is no prefix hit"
        proof = frozen["proof"]
        assert frozen["token_count"] == talk.computed_tokens
        assert asked.token_ids == (proof["token_id"],)
        assert asked.top_logprobs[0][f"token_id:{proof['token_id']}"] == proof["logprob"]
        thawed = await cwm.call("window_thaw", window_name="proved", new_session_id="proved-again", prove=True)
    assert (thawed["proof"], thawed["proof_check"]["difference"]) == ("equal", 0)
    assert thawed["proof_check"]["loaded_tokens"] == full
    code, proved = await prove(engine, "proved")
    assert (code, proved["proof"]) == (0, "equal")
