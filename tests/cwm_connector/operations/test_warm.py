"""A window that was warmed is thawed from memory, and nobody else may load it than before."""

from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import Passport
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature, chunk_files
from tests.support.vllm_parts import BLOCK_TOKENS

TEXT = range(1000, 1000 + 9 * BLOCK_TOKENS)  # four chunks and one block


async def frozen(home: Path) -> list[str]:
    """Freeze a window in an engine that then ends. Return the hashes of its blocks."""
    engine = await Miniature.started(home)
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    blocks = (await engine.call(Op.STATUS, window_name="w", include_blocks=True))["blocks"]
    engine.close()
    return [block["hash"] for block in blocks]


async def test_a_warmed_window_is_thawed_from_memory(tmp_path: Path) -> None:
    await frozen(tmp_path)
    later = await Miniature.started(tmp_path)
    warmed = await later.call(Op.WARM, window_name="w")
    assert (warmed["ready_tokens"], warmed["read_by_tier"], warmed["warning"]) == (144, {"disk": 144}, None)
    assert (await later.call(Op.WARM, window_name="w"))["read_by_tier"] == {"cpu": 144}
    thawed = await later.call(Op.THAW, window_name="w", new_session_id="bob")
    assert thawed["restored_by_tier"] == {"cpu": 144}
    later.close()


async def test_warming_binds_nobody(tmp_path: Path) -> None:
    await frozen(tmp_path)
    later = await Miniature.started(tmp_path, auto_thaw="off")
    await later.call(Op.WARM, window_name="w")
    assert await later.resume(TEXT, session_id="alice") == 0
    assert (await later.call(Op.STATUS, window_name="w"))["timestamps"]["thawed_at"] is None
    later.close()


async def test_a_damaged_block_is_named_and_not_ready(tmp_path: Path) -> None:
    hashes = await frozen(tmp_path)
    (path,) = [path for path in chunk_files(tmp_path) if hashes[2] in path.name]
    data = bytearray(path.read_bytes())
    data[5000] ^= 8
    path.write_bytes(data)
    later = await Miniature.started(tmp_path)
    warmed = await later.call(Op.WARM, window_name="w")
    assert warmed["ready_tokens"] < 144 and "CWM-4004" in warmed["warning"]
    later.close()


async def test_a_window_of_another_model_is_refused(tmp_path: Path) -> None:
    await frozen(tmp_path)
    other = await Miniature.started(tmp_path, passport=Passport({"weights": "large", "format": "1"}))
    with pytest.raises(CWMError) as refused:
        await other.call(Op.WARM, window_name="w")
    assert refused.value.code is Code.PASSPORT
    other.close()


async def test_an_engine_that_sleeps_says_so_at_once(tmp_path: Path) -> None:
    await frozen(tmp_path)
    engine = await Miniature.started(tmp_path)
    engine.asleep = True
    with pytest.raises(CWMError, match=r"CWM-3001.*asleep or paused; wake it"):
        await engine.call(Op.WARM, window_name="w")
    engine.close()
