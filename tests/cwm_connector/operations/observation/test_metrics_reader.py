"""metrics_reader.py: the gauges that alerts look at, while tiers fill, break and go away."""

from pathlib import Path

from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.redis_server import RedisServer
from tests.support.stores import on_disk
from tests.support.vllm_parts import BLOCK_TOKENS

TEXT = range(1000, 1000 + 9 * BLOCK_TOKENS)


async def values(engine: Miniature, name: str) -> dict[str, float]:
    """Return a metric's values by tier."""
    metrics = (await engine.call(Op.METRICS))["metrics"]
    return {each["labels"].get("tier", ""): each["value"] for each in metrics if each["name"] == name}


async def test_the_disk_tier_shows_its_bytes_its_limit_and_the_space_that_is_left(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    assert await values(engine, "cwm_tier_bytes") == {"disk": on_disk(engine)}
    assert await values(engine, "cwm_tier_limit_bytes") == {"disk": 2**30}
    assert await values(engine, "cwm_tier_up") == {"disk": 1}
    assert (await values(engine, "cwm_disk_free_bytes"))[""] > 0


async def test_counters_that_alerts_look_at_begin_with_zero(engine: Miniature) -> None:
    for name in ("cwm_bad_copies_total", "cwm_loaded_tokens_total"):
        assert await values(engine, name) == {"cpu": 0, "disk": 0, "redis": 0}


async def test_a_corrupt_chunk_that_a_load_finds_is_counted(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    engine.close()
    engine = await Miniature.started(tmp_path)
    damaged = next(path for path in (tmp_path / "chunks").rglob("*") if path.is_file())
    with damaged.open("r+b") as file:
        file.seek(5000)
        file.write(b"broken")
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    assert (await values(engine, "cwm_bad_copies_total"))["disk"] == 1
    engine.close()


async def test_a_corrupt_chunk_that_a_verification_finds_is_counted(engine: Miniature) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    damaged = next(path for path in (engine.settings.home / "chunks").rglob("*") if path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-6] + b"broken")
    await engine.call(Op.VERIFY)
    assert (await values(engine, "cwm_bad_copies_total"))["disk"] == 1


async def test_a_redis_that_goes_away_is_seen_by_the_next_scrape(tmp_path: Path, server: RedisServer) -> None:
    engine = await Miniature.started(tmp_path / "home", redis_url=server.url)
    assert await values(engine, "cwm_tier_up") == {"disk": 1, "redis": 1}
    server.kill()
    assert await values(engine, "cwm_tier_up") == {"disk": 1, "redis": 0}
    engine.close()
