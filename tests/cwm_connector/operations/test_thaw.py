"""thaw.py over real tiers, a real catalog and vLLM's block pool. Only the model is missing."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import Passport
from cwm_connector.protocol.calls import Op
from cwm_connector.step.prefill_speed import PrefillSpeed
from tests.support.miniature import Miniature, chunk_files
from tests.support.vllm_parts import BLOCK_TOKENS

TEXT = range(1000, 1000 + 9 * BLOCK_TOKENS)  # four chunks and one block


async def test_a_thaw_restores_every_page_for_its_session_and_its_salt_and_for_nobody_else(
    thaw_only: Miniature,
) -> None:
    await thaw_only.serve(TEXT, "alice")
    await thaw_only.call(Op.FREEZE, session_id="alice", window_name="w")
    thawed = await thaw_only.call(Op.THAW, window_name="w", new_session_id="bob")
    assert (thawed["session_id"], thawed["restorable_tokens"], thawed["partial"]) == ("bob", 144, False)
    assert thawed["restored_by_tier"] == {"cpu": 144}
    assert await thaw_only.resume(TEXT, session_id="bob") == 144
    assert await thaw_only.resume(TEXT, salt=thawed["cache_salt"]) == 144
    assert await thaw_only.resume(TEXT, session_id="alice") == 0
    assert await thaw_only.resume(TEXT, salt="cwm-guess") == 0
    assert await thaw_only.resume(TEXT) == 0


async def test_a_window_in_memory_is_thawed_without_waiting_for_the_workers(
    thaw_only: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    await thaw_only.serve(TEXT, "alice")
    await thaw_only.call(Op.FREEZE, session_id="alice", window_name="w")
    begun = threading.Event()
    monkeypatch.setattr("cwm_connector.operations.thaw.thaw.COUNTED_AFTER_S", 1.0)
    monkeypatch.setattr(thaw_only.worker, "submit", lambda jobs: begun.set() if jobs else None)
    thawed = await asyncio.wait_for(thaw_only.call(Op.THAW, window_name="w"), 10)
    assert thawed["restored_by_tier"] == {"cpu": 144} and thawed["restorable_tokens"] == 144
    assert not begun.is_set()  # nothing competes with the answer
    assert await asyncio.to_thread(begun.wait, 10)  # its chunks still count as used


async def test_a_thaw_reports_no_progress_after_its_answer(
    thaw_only: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    await thaw_only.serve(TEXT, "alice")
    await thaw_only.call(Op.FREEZE, session_id="alice", window_name="w")
    monkeypatch.setattr("cwm_connector.operations.thaw.thaw.COUNTED_AFTER_S", 0.01)
    counted, submit = threading.Event(), thaw_only.worker.submit

    def watched(jobs: Any) -> None:
        submit(jobs)
        if jobs:
            counted.set()

    monkeypatch.setattr(thaw_only.worker, "submit", watched)
    heard: list[str] = []
    await thaw_only.call(Op.THAW, lambda done, total, text: heard.append(text), window_name="w")
    heard.clear()
    assert await asyncio.to_thread(counted.wait, 10)
    await thaw_only.call(Op.VERIFY)  # waits for the workers as well, behind the thaw's work
    assert heard == []


@pytest.mark.parametrize(("tokens_per_step", "faster"), [(1, None), (1_000_000_000, True), (200, False)])
async def test_a_thaw_says_when_computing_would_have_been_faster(
    engine: Miniature, tokens_per_step: int, faster: bool | None
) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    speed = engine.engine.scheduler.prefill_speed = PrefillSpeed(iter(range(100)).__next__)  # a step is a second or so
    speed.step_planned(tokens_per_step)
    speed.step_done()
    assert (await engine.call(Op.THAW, window_name="w"))["recompute_is_faster"] is faster
    assert (await engine.call(Op.THAW, window_name="w", prewarm=False))["recompute_is_faster"] is None
    rates = [each for each in (await engine.call(Op.METRICS))["metrics"] if "prefill" in each["name"]]
    assert [each["value"] for each in rates] == ([] if faster is None else [pytest.approx(tokens_per_step)])


async def test_every_thaw_gets_its_own_salt(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    salts = {(await engine.call(Op.THAW, window_name="w"))["cache_salt"] for _ in range(5)}
    assert len(salts) == 5 and all(len(salt) >= 32 and not set(salt) & set("@/\\") for salt in salts)


async def test_a_clone_in_the_session_of_its_source_is_warned_of(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    await engine.call(Op.CLONE, source_window="w", target_window="for-bob")
    into_alice = await engine.call(Op.THAW, window_name="for-bob")
    assert into_alice["session_id"] == "alice" and "session 'alice' is also that" in into_alice["warning"]
    into_bob = await engine.call(Op.THAW, window_name="for-bob", new_session_id="bob")
    assert into_bob["warning"] is None
    assert (await engine.call(Op.THAW, window_name="w"))["warning"] is None


async def test_after_a_restart_an_anonymous_client_continues_its_thawed_session(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await first.serve(TEXT)
    ((name,),) = [[each["session_id"]] for each in (await first.call(Op.SESSIONS))["sessions"]]
    await first.call(Op.FREEZE, session_id=name, window_name="w")
    first.close()
    later = await Miniature.started(tmp_path, auto_thaw="off")
    assert await later.resume(TEXT) == 0  # nobody has thawed it
    await later.call(Op.THAW, window_name="w")
    await later.serve([*TEXT, 7, 7, 7])
    assert [each["session_id"] for each in (await later.call(Op.SESSIONS))["sessions"]] == [name]
    assert await later.resume(TEXT) == 144
    assert await later.resume(range(500, 700)) == 0
    later.close()


async def test_windows_and_thaws_survive_a_restart(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await first.serve(TEXT, "alice")
    await first.call(Op.FREEZE, session_id="alice", window_name="w")
    salt = (await first.call(Op.THAW, window_name="w", new_session_id="bob"))["cache_salt"]
    first.close()
    later = await Miniature.started(tmp_path)
    assert await later.resume(TEXT, salt=salt) == 144
    assert await later.resume(TEXT, session_id="bob") == 144
    thawed = await later.call(Op.THAW, window_name="w", prewarm=False)
    assert thawed["restored_by_tier"] == {"cpu": 144}  # the two requests before have brought it there
    later.close()


async def test_a_window_of_another_model_is_refused_with_the_field_and_both_values(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await first.serve(TEXT, "alice")
    await first.call(Op.FREEZE, session_id="alice", window_name="w")
    first.close()
    other = await Miniature.started(tmp_path, passport=Passport({"weights": "large", "format": "1"}))
    with pytest.raises(CWMError) as refused:
        await other.call(Op.THAW, window_name="w")
    assert refused.value.code is Code.PASSPORT
    assert refused.value.context == {"field": "weights", "engine": "large", "window": "small"}
    assert await other.resume(TEXT, session_id="alice") == 0
    other.close()


async def test_a_damaged_chunk_shortens_the_thaw_and_is_reported(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await first.serve(TEXT, "alice")
    await first.call(Op.FREEZE, session_id="alice", window_name="w")
    blocks = (await first.call(Op.STATUS, window_name="w", include_blocks=True))["blocks"]
    first.close()
    (path,) = [path for path in chunk_files(tmp_path) if blocks[2]["hash"] in path.name]
    data = bytearray(path.read_bytes())
    data[5000] ^= 8
    path.write_bytes(data)
    later = await Miniature.started(tmp_path)
    thawed = await later.call(Op.THAW, window_name="w")
    assert thawed["partial"] and thawed["restorable_tokens"] == 64 and "CWM-4004" in thawed["warning"]
    assert await later.resume(TEXT, session_id="alice") == 64
    later.close()


async def test_without_prewarming_a_damaged_chunk_is_found_by_the_load(tmp_path: Path) -> None:
    first = await Miniature.started(tmp_path)
    await first.serve(TEXT, "alice")
    await first.call(Op.FREEZE, session_id="alice", window_name="w")
    blocks = (await first.call(Op.STATUS, window_name="w", include_blocks=True))["blocks"]
    first.close()
    (path,) = [path for path in chunk_files(tmp_path) if blocks[1]["hash"] in path.name]
    path.write_bytes(path.read_bytes()[:-4096])
    later = await Miniature.started(tmp_path)
    await later.call(Op.THAW, window_name="w", prewarm=False)
    assert await later.resume(TEXT, session_id="alice") == 32
    assert await later.resume(TEXT, session_id="alice") == 32
    later.close()
