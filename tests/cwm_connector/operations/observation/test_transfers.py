"""The statistics list what moves KV at the moment, with how far it has come, and nothing that has ended."""

import asyncio
from typing import Any

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.stores import frozen, text


async def under_way(engine: Miniature) -> list[dict[str, Any]]:
    """Return what the statistics list."""
    listed: list[dict[str, Any]] = (await engine.call(Op.STATS))["transfers"]
    return listed


async def listed_during(engine: Miniature, op: Op, **args: Any) -> list[dict[str, Any]]:
    """Begin a call that waits for the lock that the test holds, and return what is listed meanwhile."""
    async with engine.engine.chunk_lock:
        call = asyncio.create_task(engine.call(op, **args))
        while not (listed := await under_way(engine)):  # noqa: ASYNC110
            await asyncio.sleep(0)
    await call
    return listed


async def test_nothing_is_listed_while_nothing_moves(engine: Miniature) -> None:
    await frozen(engine, "w", text(1))
    assert await under_way(engine) == []


async def test_a_freeze_is_listed_until_it_ends(engine: Miniature) -> None:
    await engine.serve(text(1), "s")
    (listed,) = await listed_during(engine, Op.FREEZE, session_id="s", window_name="w")
    assert (listed["kind"], listed["name"], listed["done"], listed["total"]) == ("freeze", "w", 0, None)
    assert listed["started_at"].endswith("Z")
    assert await under_way(engine) == []


async def test_an_export_says_how_far_it_has_come(engine: Miniature, tmp_path_factory: pytest.TempPathFactory) -> None:
    await frozen(engine, "w", text(1))
    seen: list[tuple[str, str | None, int, int | None]] = []

    def look(*_: object) -> None:
        seen.extend((each.kind, each.name, each.done, each.total) for each in engine.operations.transfers.listed())

    await engine.call(Op.EXPORT, look, window_name="w", path=str(tmp_path_factory.mktemp("exports") / "w.cwm"))
    assert ("export", "w", 3, 3) in seen
    assert await under_way(engine) == []


async def test_a_call_that_fails_is_not_listed_afterwards(engine: Miniature) -> None:
    with pytest.raises(CWMError):
        await engine.call(Op.THAW, window_name="nobody")
    assert await under_way(engine) == []
