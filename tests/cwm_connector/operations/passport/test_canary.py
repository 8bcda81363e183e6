"""The canary: whatever changes the KV, a window of before is refused, and nothing else notices the canary."""

import asyncio
import json
from pathlib import Path

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.core.identity import with_sample
from cwm_connector.operations.passport import canary
from cwm_connector.operations.passport.current import CurrentPassport
from cwm_connector.protocol.calls import Op
from cwm_connector.step.job_board import HOLD_S, CopyGate, JobBoard
from tests.support.clock import Clock
from tests.support.miniature import Miniature, chunk_files
from tests.support.vllm_parts import BLOCK_TOKENS, request

TEXT = list(range(100, 250))
REFUSED = r"CWM-5003.*weights 'small'.*'small, replaced in place by "


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "POLL_S", 0.01)
    monkeypatch.setattr(canary, "RETRY_S", 0.01)


async def known(engine: Miniature) -> str:
    return (await engine.engine.passports.known(10)).fields["canary"]


async def test_after_weights_are_replaced_in_place_old_windows_are_refused_and_new_ones_are_exact(
    tmp_path: Path,
) -> None:
    """As in reinforcement learning: pause with a clear cache, update the weights, go on."""
    engine = await Miniature.started(tmp_path, canary=True)
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="before")
    await engine.call(Op.THAW, window_name="before", new_session_id="bob")
    stored = len(chunk_files(tmp_path))
    first = await known(engine)
    engine.asleep = True
    assert await engine.drop_cache()
    engine.weights = 5
    engine.asleep = False
    assert await known(engine) != first
    with pytest.raises(CWMError, match=REFUSED):
        await engine.call(Op.THAW, window_name="before")
    assert await engine.resume(TEXT, "bob") == await engine.resume(TEXT, "alice") == 0
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="after")
    assert len(chunk_files(tmp_path)) == 2 * stored, "the new weights' KV is stored beside the old"
    await engine.evict()
    assert await engine.resume(TEXT, "alice") == 144  # the miniature engine compares every page
    engine.weights = 0
    assert await engine.drop_cache()
    assert await known(engine) == first, "the first weights are back"
    assert (await engine.call(Op.THAW, window_name="before"))["restorable_tokens"] == 144
    engine.close()


@pytest.mark.parametrize("weights", [0, 5])
async def test_a_freeze_whose_recompute_outlasts_a_sleep_waits_for_the_canary(tmp_path: Path, weights: int) -> None:
    engine = await Miniature.started(tmp_path, canary=True)
    await engine.serve(TEXT, "alice")
    await known(engine)
    await engine.evict()
    engine.prefills_wait = True
    freezing = asyncio.create_task(engine.call(Op.FREEZE, session_id="alice", window_name="w"))
    while not engine.queued:  # noqa: ASYNC110 until it waits in vLLM's queue
        await asyncio.sleep(0.001)
    engine.prefills_wait = False
    engine.weights = weights
    engine.engine.passports.suspect(cache_dropped=True)
    engine.begin_queued()
    if weights:
        with pytest.raises(CWMError, match=r"CWM-3001.*replaced meanwhile"):
            await freezing
    else:
        assert (await freezing)["recomputed_tokens"] == 144
    engine.close()


async def test_a_change_that_no_field_names_is_refused_after_a_restart(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, canary=True)
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    first = await known(engine)
    engine.close()
    for weights in (0, 9):
        later = Miniature(tmp_path, canary=True)
        later.weights = weights
        await later.start()
        if weights == 0:
            assert await later.resume(TEXT, "alice") == 144, "a request that comes first waits for the canary"
            assert await known(later) == first
        else:
            assert await later.resume(TEXT, "alice") == 0
            with pytest.raises(CWMError, match=r"CWM-5003.*canary") as refused:
                await later.call(Op.THAW, window_name="w")
            assert refused.value.context["window"] == first and refused.value.context["engine"] == await known(later)
        later.close()


async def test_a_restart_that_only_rounds_differently_keeps_windows_and_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The miniature engine does not round, so the prints are given here."""
    first: list[str] = []
    for digest, value, same in (("a", 1.0, True), ("b", 1.01, True), ("c", 1.5, False)):
        given = with_sample(digest, [value] * 8)
        monkeypatch.setattr("cwm_connector.worker.worker.canary_of", lambda *_, given=given: given)
        engine = await Miniature.started(tmp_path, canary=True)
        first = first or [await known(engine)]
        assert ([await known(engine)] == first) is same
        if same:
            await engine.serve(TEXT, "alice")
            await engine.call(Op.FREEZE, session_id="alice", window_name=digest)
            assert len(chunk_files(tmp_path)) == len(TEXT) // BLOCK_TOKENS // 2 + 1, "stored once"
            assert await engine.drop_cache()
            assert [await known(engine)] == first, "its own print is no other weights"
            assert (await engine.call(Op.THAW, window_name="a"))["restorable_tokens"] == 144
        else:
            with pytest.raises(CWMError, match=r"CWM-5003.*canary"):
                await engine.call(Op.THAW, window_name="a")
        engine.close()


async def test_requests_wait_while_the_weights_are_in_doubt_and_then_load_nothing_of_the_old_ones(
    tmp_path: Path,
) -> None:
    """As after an update that keeps vLLM's cache. The thawed window is in memory, so nobody would look it up."""
    engine = await Miniature.started(tmp_path, canary=True)
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    await engine.evict()
    assert await engine.resume(TEXT, "bob") == 144
    await engine.evict()
    engine.prefills_wait, engine.weights = True, 5
    engine.parts.passports.suspect()
    resumed = asyncio.create_task(engine.resume(TEXT, "bob"))
    for _ in range(500):
        if engine.queued and engine.asked_again:
            break
        await asyncio.sleep(0.01)
    assert engine.queued and engine.asked_again and not resumed.done()
    engine.prefills_wait = False
    engine.begin_queued()
    assert await resumed == 0
    engine.close()


@pytest.mark.parametrize("kept", [True, False])
async def test_a_request_that_has_found_its_window_before_weights_are_replaced_does_not_load_it(
    tmp_path: Path, kept: bool
) -> None:
    """It has waited in vLLM's queue meanwhile. `kept`: vLLM keeps its cache and the thaws stay bound."""
    engine = await Miniature.started(tmp_path, canary=True)
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    await engine.evict()
    one = request([*TEXT, 7], request_id="waits", session_id="bob")
    scheduler = engine.scheduler
    await asyncio.wrap_future(engine._do(lambda: scheduler.request_added(one)))
    assert await asyncio.to_thread(engine._matched, one) == 144
    await known(engine)
    engine.weights = 5
    if kept:
        await asyncio.wrap_future(engine._do(engine.parts.passports.suspect))
    else:
        assert await engine.drop_cache()
    assert await asyncio.to_thread(engine._matched, one) == 0
    engine.close()


def test_a_request_waits_for_the_canary_a_while_and_then_computes() -> None:
    clock = Clock()
    gate = CopyGate(JobBoard(1), lambda: False, clock=clock)
    assert not gate.holds_loads()
    gate.may_load = lambda: False
    assert gate.holds_loads()
    clock.now = HOLD_S
    assert not gate.holds_loads()


async def test_the_canary_belongs_to_no_session_and_stores_nothing(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, canary=True)
    await known(engine)
    assert (await engine.call(Op.SESSIONS))["sessions"] == []
    assert chunk_files(tmp_path) == []
    await asyncio.sleep(0.1)
    assert engine.pool.get_num_free_blocks() == 63, "its blocks are vLLM's again"
    engine.close()


async def test_an_engine_that_does_not_answer_the_canary_freezes_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwm_connector.operations.passport.current.KNOWN_LIMIT_S", 0.2)
    engine = Miniature(tmp_path, canary=True)
    engine.prefills_wait = True
    await engine.start()
    with pytest.raises(CWMError, match=r"CWM-3001.*which weights it serves"):
        await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    engine.asleep = True
    with pytest.raises(CWMError, match=r"CWM-3001.*asleep or paused"):
        await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    engine.close()


def test_weights_that_change_while_vllm_keeps_its_cache_end_freezes_until_it_is_reset() -> None:
    passports, changes = CurrentPassport(has_canary=True), list[bool]()
    passports.found("one", passports.checks, lambda: changes.append(True))
    passports.suspect()
    passports.found("two", passports.checks, lambda: changes.append(passports.is_known))
    assert changes == [False], "thaws are unbound before a request may load again"
    with pytest.raises(CWMError, match=r"CWM-3001.*reset_prefix_cache"):
        asyncio.run(passports.known(1))
    passports.suspect(cache_dropped=True)
    passports.found("two", passports.checks, lambda: changes.append(True))
    assert asyncio.run(passports.known(1)).fields["canary"] == "two" and len(changes) == 1


def test_a_canary_that_was_overtaken_by_another_change_does_not_count() -> None:
    passports = CurrentPassport(has_canary=True)
    checks = passports.checks
    passports.suspect(cache_dropped=True)
    passports.found("old", checks, lambda: None)
    assert not passports.is_known
    with pytest.raises(CWMError, match="replaced meanwhile"):
        passports.require_still({})


@pytest.mark.parametrize(("longest", "blocks"), [(4096, 2), (34, 2), (33, 1), (17, 0), (1, 0)])
def test_the_canary_is_at_most_two_blocks_of_ordinary_tokens(longest: int, blocks: int) -> None:
    tokens = canary.canary_tokens(1000, 16, longest)
    assert len(tokens) == (blocks * 16 + 1 if blocks else 0)
    assert all(250 <= token < 750 for token in tokens)


async def test_the_home_has_the_passport_of_now_for_the_doctor(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path, canary=True)
    path = engine.settings.passport_path
    first = await known(engine)
    for _ in range(500):
        if path.exists() and "canary" in json.loads(path.read_text()):
            break
        await asyncio.sleep(0.01)
    assert json.loads(path.read_text()) == {"weights": "small", "format": "1", "canary": first}
    engine.close()
