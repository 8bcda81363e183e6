"""Proofs over the miniature engine, whose token follows from every byte of the pages behind it."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.operations.freeze.under_way import Stage
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.stores import files_of, flip, forget_memory, hashes_of, text

TEXT = [*text(1), *range(7, 12)]
"""Three whole chunks, and a rest that no block holds."""
WHOLE = 96


async def proven(engine: Miniature, name: str = "w", tokens: list[int] = TEXT, salt: str | None = None) -> Any:
    await engine.serve(tokens, None if salt else name, salt)
    (session,) = [each["session_id"] for each in (await engine.call(Op.SESSIONS))["sessions"]][:1]
    return await engine.call(Op.FREEZE, session_id=session, window_name=name, prove=True)


async def test_a_freeze_takes_a_proof_and_every_thaw_that_is_asked_repeats_it(engine: Miniature) -> None:
    frozen = await proven(engine)
    assert frozen["proof"].keys() == {"token_id", "logprob", "taken_at"} and "no_proof" not in frozen
    assert (await engine.call(Op.STATUS, window_name="w"))["proof"] == frozen["proof"]
    thawed = await engine.call(Op.THAW, window_name="w", new_session_id="again", prove=True)
    check = thawed["proof_check"]
    assert (thawed["proof"], check["equal"], check["difference"]) == ("equal", True, 0)
    assert (check["loaded_tokens"], check["computed_tokens"]) == (WHOLE, 5)
    assert check["token_id"] == check["repeated_token_id"] == frozen["proof"]["token_id"]
    assert check["logprob"] == check["repeated_logprob"] == frozen["proof"]["logprob"]
    assert "proof" not in await engine.call(Op.THAW, window_name="w", new_session_id="unasked")


async def test_a_window_is_proved_after_a_restart_from_the_disk_and_stays_as_it_was(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    frozen = await proven(first)
    first.close()
    later = await Miniature.started(tmp_path, auto_thaw="off")
    proved = await later.call(Op.PROVE, window_name="w")
    assert (proved["proof"], proved["token_count"]) == ("equal", len(TEXT))
    assert proved["proof_check"]["token_id"] == frozen["proof"]["token_id"]
    assert proved["proof_check"]["loaded_tokens"] == WHOLE
    assert (await later.call(Op.STATUS, window_name="w"))["state"] == "frozen"
    assert await later.resume(TEXT, session_id="w") == 0
    later.close()


async def test_a_clone_has_the_proof_of_its_source(engine: Miniature) -> None:
    frozen = await proven(engine)
    await engine.call(Op.CLONE, source_window="w", target_window="copy")
    await engine.call(Op.DELETE, window_name="w")
    assert (await engine.call(Op.STATUS, window_name="copy"))["proof"] == frozen["proof"]
    assert (await engine.call(Op.PROVE, window_name="copy"))["proof"] == "equal"


async def test_kv_that_is_not_the_windows_is_different(engine: Miniature) -> None:
    await proven(engine)
    proof = await engine.catalog.run(lambda catalog: catalog.proof_of("w"))
    assert proof is not None
    for other in (replace(proof, token_id=proof.token_id + 1), replace(proof, logprob=proof.logprob + 1e-6)):
        await engine.catalog.run(lambda catalog: catalog.add_proof("w", other))  # noqa: B023 - called at once
        proved = await engine.call(Op.PROVE, window_name="w")
        assert (proved["proof"], proved["proof_check"]["equal"]) == ("different", False)
        assert proved["proof_check"]["loaded_tokens"] == WHOLE and "idle" in proved["proof_check"]["because"]


@pytest.mark.parametrize(("damaged", "loaded"), [(0, 0), (1, 32), (2, 64)])
async def test_nothing_is_proved_by_what_was_computed(tmp_path: Path, damaged: int, loaded: int) -> None:
    """The miniature computes exactly what was stored, so the token is equal all the same."""
    first = await Miniature.started(tmp_path)
    await proven(first)
    (path,) = files_of(tmp_path, [(await hashes_of(first, "w"))[damaged]])
    first.close()
    flip(path)
    later = await Miniature.started(tmp_path)
    check = (await later.call(Op.PROVE, window_name="w"))["proof_check"]
    assert check["repeated_token_id"] == check["token_id"] and check["difference"] == 0
    assert not check["equal"] and check["loaded_tokens"] == loaded
    assert check["computed_tokens"] == len(TEXT) - loaded
    assert check["because"] == f"only {loaded} of 96 tokens could be loaded; `cwm verify` finds damaged chunks"
    assert (await later.call(Op.THAW, window_name="w", prove=True))["proof"] == "none"
    later.close()


async def test_without_a_proof_the_answer_says_what_to_do(engine: Miniature) -> None:
    await engine.serve(TEXT, "s")
    assert "proof" not in await engine.call(Op.FREEZE, session_id="s", window_name="w")
    assert "proof" not in await engine.call(Op.STATUS, window_name="w")
    with pytest.raises(CWMError, match="freeze its session again with prove=true") as refused:
        await engine.call(Op.PROVE, window_name="w")
    assert refused.value.code is Code.STATE
    thawed = await engine.call(Op.THAW, window_name="w", prove=True)
    assert thawed["proof"] == "none" and "prove=true" in thawed["proof_check"]["because"]


async def test_a_private_window_is_proved_and_opened_to_nobody(engine: Miniature) -> None:
    frozen = await proven(engine, salt="secret")
    assert frozen["proof"]
    assert (await engine.call(Op.PROVE, window_name="w"))["proof"] == "equal"
    await engine.evict()
    forget_memory(engine)
    assert await engine.resume(TEXT) == 0
    assert await engine.resume(TEXT, session_id=frozen["session_id"]) == 0
    assert await engine.resume(TEXT, salt="secret") == 0
    assert await engine.catalog.run(lambda catalog: catalog.bindings()) == ()


async def test_proofs_belong_to_no_session(engine: Miniature) -> None:
    await proven(engine)
    before = (await engine.call(Op.SESSIONS))["total"]
    await engine.call(Op.PROVE, window_name="w")
    assert (await engine.call(Op.SESSIONS))["total"] == before == 1


async def test_an_engine_that_falls_asleep_takes_no_proof_and_the_window_is_there(engine: Miniature) -> None:
    await engine.serve(TEXT, "s")

    def sleep_before_the_proof(done: int, total: int, text: str) -> None:
        engine.asleep = engine.asleep or text == "taking the proof"

    frozen = await engine.call(Op.FREEZE, sleep_before_the_proof, session_id="s", window_name="w", prove=True)
    assert "proof" not in frozen
    assert frozen["no_proof"] == "no proof was taken: the engine is asleep or paused; wake it and try again"
    assert (await engine.call(Op.STATUS, window_name="w"))["state"] == "frozen"
    async with asyncio.timeout(20):
        while engine.scheduler._proofs:  # noqa: ASYNC110 the engine thread forgets it after the answer
            await asyncio.sleep(0.01)


async def test_no_proof_is_taken_from_kv_that_was_evicted_in_between(engine: Miniature) -> None:
    await engine.serve(TEXT, "s")
    await engine.call(Op.FREEZE, session_id="s", window_name="one")
    await engine.evict()
    frozen = await engine.call(Op.FREEZE, session_id="s", window_name="two", prove=True)
    assert "proof" not in frozen and "evicted 96 of its tokens" in frozen["no_proof"]


async def queueing(engine: Miniature) -> "asyncio.Task[dict[str, Any]]":
    """Begin a freeze whose proof waits in vLLM's queue."""
    await engine.serve(TEXT, "s")
    engine.prefills_wait = True
    freezing = asyncio.create_task(engine.call(Op.FREEZE, session_id="s", window_name="w", prove=True))
    while not engine.queued:  # noqa: ASYNC110 until it has been submitted
        await asyncio.sleep(0.001)
    return freezing


async def given_up(engine: Miniature) -> None:
    """Wait until the engine has aborted the proof's request and forgotten it, which it does in a step of its own."""
    async with asyncio.timeout(20):
        while engine.queued or engine.scheduler._proofs:  # noqa: ASYNC110 it belongs to the engine's thread
            await asyncio.sleep(0.001)


async def test_a_proof_that_waits_holds_no_lock(engine: Miniature) -> None:
    freezing = await queueing(engine)
    async with asyncio.timeout(20):
        await engine.serve(text(2), "other")
        await engine.call(Op.FREEZE, session_id="other", window_name="other")
        await engine.call(Op.DELETE, window_name="other")
    status = await engine.call(Op.STATUS, window_name="w")
    assert status["progress"]["stage"] == Stage.PROVING
    assert not freezing.done()
    freezing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await freezing
    await given_up(engine)
    assert (await engine.call(Op.STATUS, window_name="w"))["state"] == "frozen"


async def test_a_busy_engine_delays_an_acknowledgement_for_a_limited_time(
    engine: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwm_connector.operations.proof.prover.TAKE_LIMIT_S", 0.2)
    frozen = await (await queueing(engine))
    assert "too busy" in frozen["no_proof"] and "proof" not in frozen
    await given_up(engine)
