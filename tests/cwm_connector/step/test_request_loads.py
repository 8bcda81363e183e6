"""Many requests on one thawed window, on the miniature engine: one loads, the others find its blocks."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cwm_connector.core.types import TierName
from cwm_connector.protocol.calls import Op
from cwm_connector.settings import LoadPolicy
from tests.support.fan_out import FanOut
from tests.support.miniature import CHUNK_BLOCKS, Miniature, chunk_files
from tests.support.vllm_parts import BLOCK_TOKENS, request

BLOCKS = 8
IDS = list(range(BLOCKS * BLOCK_TOKENS))
CHUNKS = BLOCKS // CHUNK_BLOCKS


async def frozen(home: Path) -> Miniature:
    """Return an engine with a window of `IDS`, whose blocks vLLM has evicted."""
    one = await Miniature.started(home)
    await one.serve(IDS, session_id="alice")
    await one.call(Op.FREEZE, session_id="alice", window_name="w")
    await one.evict()
    return one


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Miniature]:
    one = await frozen(tmp_path)
    yield one
    one.close()


class HeldLoads:
    """Keeps the engine's loads from beginning until `release`."""

    def __init__(self, engine: Miniature) -> None:
        self._gate = threading.Event()
        engine.worker._memory_load_thread.submit(self._gate.wait, 20)

    def release(self) -> None:
        self._gate.set()


class NoBlocks:
    """The blocks that vLLM allocates for a request that loads nothing."""

    def get_block_ids(self) -> tuple[list[int], ...]:
        return ([],)


async def thawed_salt(engine: Miniature, prewarm: bool = True) -> str:
    return str((await engine.call(Op.THAW, window_name="w", prewarm=prewarm))["cache_salt"])


def loaded_chunks(engine: Miniature) -> int:
    return engine.parts.metrics.hits_and_misses()[0]


async def test_eight_requests_on_one_thaw_load_it_once(engine: Miniature) -> None:
    salt = await thawed_salt(engine)
    fan = FanOut(engine)
    requests = [fan.add(IDS, salt) for _ in range(8)]
    free = engine.pool.get_num_free_blocks()
    fan.finish()
    assert [(one.cached, one.loaded) for one in requests] == [(0, len(IDS))] + 7 * [(len(IDS), 0)]
    assert loaded_chunks(engine) == CHUNKS
    assert free - engine.pool.get_num_free_blocks() == BLOCKS


async def test_a_request_that_runs_before_its_load_is_reported_has_loaded_all_of_it(
    engine: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    fan = FanOut(engine)
    one = fan.add(IDS, await thawed_salt(engine))
    monkeypatch.setattr(engine.worker, "take_reports", lambda: None)
    fan.finish()
    assert loaded_chunks(engine) == 0
    assert engine.scheduler._loads.finished(one.id) == len(IDS)


async def test_a_request_that_goes_on_further_waits_for_what_it_shares(engine: Miniature) -> None:
    salt = await thawed_salt(engine)
    fan, held = FanOut(engine), HeldLoads(engine)
    first = fan.add(IDS[: 6 * BLOCK_TOKENS], salt)
    fan.step()
    longer = fan.add(IDS, salt)
    fan.step()
    assert longer in fan.waiting
    held.release()
    fan.finish()
    assert (first.loaded, longer.cached, longer.loaded) == (6 * BLOCK_TOKENS, 6 * BLOCK_TOKENS, 2 * BLOCK_TOKENS)


async def test_requests_with_different_salts_load_for_themselves(engine: Miniature) -> None:
    salts = [await thawed_salt(engine) for _ in range(3)]
    fan, held = FanOut(engine), HeldLoads(engine)
    requests = [fan.add(IDS, salt) for salt in salts]
    fan.step()
    assert fan.waiting == []
    held.release()
    fan.finish()
    assert [one.loaded for one in requests] == 3 * [len(IDS)]


async def test_when_the_loading_request_is_aborted_one_of_the_others_loads(engine: Miniature) -> None:
    salt = await thawed_salt(engine)
    fan, held = FanOut(engine), HeldLoads(engine)
    first, *others = [fan.add(IDS, salt) for _ in range(4)]
    fan.step()
    fan.abort(first)
    held.release()
    fan.finish()
    assert [(one.cached, one.loaded) for one in others] == [(0, len(IDS))] + 2 * [(len(IDS), 0)]


async def test_a_waiting_request_that_is_aborted_is_forgotten(engine: Miniature) -> None:
    salt = await thawed_salt(engine)
    fan, held = FanOut(engine), HeldLoads(engine)
    requests = [fan.add(IDS, salt) for _ in range(3)]
    fan.step()
    fan.abort(requests[1])
    held.release()
    fan.finish()
    assert [one.is_running for one in requests] == [True, False, True]


async def test_requests_go_on_when_the_load_that_they_wait_for_fails(tmp_path: Path) -> None:
    (await frozen(tmp_path)).close()
    restarted = await Miniature.started(tmp_path)
    salt = await thawed_salt(restarted, prewarm=False)
    fan, held = FanOut(restarted), HeldLoads(restarted)
    requests = [fan.add(IDS, salt) for _ in range(4)]
    fan.step()
    for file in chunk_files(tmp_path):
        file.unlink()
    held.release()
    fan.finish()
    assert [one.loaded for one in requests] == 4 * [0]
    restarted.close()


async def test_a_preempted_request_waits_for_the_load_of_another_one(engine: Miniature) -> None:
    salt = await thawed_salt(engine)
    fan = FanOut(engine)
    first = fan.add(IDS, salt)
    fan.finish()
    fan.preempt(first)
    await engine.evict()
    held, second = HeldLoads(engine), fan.add(IDS, salt)
    fan.waiting.reverse()  # the other one is asked first
    fan.step()
    assert fan.waiting == [first]
    held.release()
    fan.finish()
    assert (first.cached, second.loaded) == (len(IDS), len(IDS))


async def auto(home: Path, tokens_per_second: int) -> Miniature:
    """Return a restarted engine that chooses, and computes so many tokens a second. Its disk reads 1,000."""
    (await frozen(home)).close()
    one = await Miniature.started(home, load="auto")
    one.scheduler.read_speed.measured({TierName.DISK: 1000}, 1.0)
    one.scheduler.prefill_speed._take_in(tokens_per_second, 0, 1.0)
    return one


async def test_auto_computes_what_a_slow_disk_has_and_says_so(tmp_path: Path) -> None:
    engine = await auto(tmp_path, 2000)
    thawed = await engine.call(Op.THAW, window_name="w")
    assert (thawed["load"]["loaded"], thawed["load"]["computed"]) == (0, len(IDS))
    assert "not bit-equal" in thawed["load"]["because"] and thawed["recompute_is_faster"] is True
    fan = FanOut(engine)
    first, second = fan.add(IDS, thawed["cache_salt"]), fan.add(IDS[:64], thawed["cache_salt"])
    fan.finish()
    assert (first.loaded, second.loaded, loaded_chunks(engine)) == (0, 0, 0)
    assert declined(engine) == len(IDS) + 64
    engine.close()


def declined(engine: Miniature) -> float:
    """Return how many tokens were not loaded because computing them is faster."""
    return {each.name: each.value for each in engine.parts.metrics.samples()}["cwm_declined_tokens_total"]


async def test_a_request_that_computes_waits_for_nobody_s_load(tmp_path: Path) -> None:
    engine = await auto(tmp_path, 2000)
    salts = [await thawed_salt(engine, prewarm=False) for _ in range(2)]
    fan, held = FanOut(engine), HeldLoads(engine)
    engine.scheduler.load_choice.policy = LoadPolicy.ALWAYS
    first = fan.add(IDS, salts[0])
    fan.step()
    engine.scheduler.load_choice.policy = LoadPolicy.AUTO
    second = fan.add(IDS, salts[1])
    fan.step()
    assert fan.waiting == []
    held.release()
    fan.finish()
    assert (first.loaded, second.loaded) == (len(IDS), 0)
    engine.close()


async def test_what_another_request_has_computed_meanwhile_is_not_declined(tmp_path: Path) -> None:
    engine = await auto(tmp_path, 2000)
    one = request([*IDS, 7], request_id="r", cache_salt=await thawed_salt(engine))

    def ask_again() -> int | None:
        now = engine.scheduler.matched_tokens(one, len(IDS))
        engine.scheduler.blocks_allocated(one, NoBlocks(), 0)
        engine.scheduler.request_finished(one)
        return now

    engine._do(lambda: engine.scheduler.request_added(one)).result(10)
    before = await asyncio.to_thread(engine._matched, one)
    assert (before, engine._do(ask_again).result(10)) == (0, 0) and declined(engine) == 0
    engine.close()


async def test_auto_loads_what_a_fast_disk_has(tmp_path: Path) -> None:
    engine = await auto(tmp_path, 500)
    thawed = await engine.call(Op.THAW, window_name="w", prewarm=False)
    assert thawed["load"]["loaded"] == len(IDS) and thawed["recompute_is_faster"] is False
    assert await engine.resume(IDS, salt=thawed["cache_salt"]) == len(IDS)
    engine.close()


async def test_a_load_and_a_prewarm_measure_their_tier(tmp_path: Path) -> None:
    (await frozen(tmp_path)).close()
    engine = await Miniature.started(tmp_path)
    await thawed_salt(engine)
    salt = await thawed_salt(engine)  # finds all in memory, which says nothing about loads from there
    assert engine.scheduler.read_speed.knows(TierName.DISK) and not engine.scheduler.read_speed.knows(TierName.CPU)
    await engine.resume(IDS, salt=salt)
    assert engine.scheduler.read_speed.knows(TierName.CPU)
    engine.close()
