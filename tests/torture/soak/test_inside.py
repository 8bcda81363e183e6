"""inside.py: it counts what is held, and every bug can still be planted."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.miniature import Miniature
from tests.support.stores import frozen, text
from tests.torture.soak import inside


def looking_at(engine: Miniature, *, worker: bool) -> dict[str, int]:
    connector: Any = object.__new__(inside.CWMConnector)
    connector._service = SimpleNamespace(scheduler=engine.scheduler)
    connector._worker = engine.worker
    held: dict[str, int] = connector._held_by_worker() if worker else connector._held_by_scheduler()
    return held


async def test_an_engine_at_rest_holds_nothing_and_a_reserved_buffer_is_seen(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    try:
        await frozen(engine, "w", text(1))
        await engine.resume(text(1), "w")
        assert set(looking_at(engine, worker=False).values()) == {0}
        assert set(looking_at(engine, worker=True).values()) == {0}
        buffer = engine.worker._cpu.reserve(4096)
        assert looking_at(engine, worker=True)["reserved buffers"] == 1
        engine.worker._cpu.release(buffer)
    finally:
        engine.close()


@pytest.mark.parametrize("name", inside.BUGS)
def test_a_bug_is_planted_while_the_file_names_it_and_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    planted, file = inside.Planted(), tmp_path / inside.BUG_FILE
    planted.change_to(file)
    assert not inside._undo
    file.write_text(name)
    planted.change_to(file)
    ((owner, attribute, before),) = inside._undo
    assert getattr(owner, attribute) is not before
    file.write_text("")
    planted.change_to(file)
    assert getattr(owner, attribute) is before and not inside._undo
