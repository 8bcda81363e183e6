"""A window's parent is the window that its conversation goes on from."""

from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.vllm_parts import BLOCK_TOKENS

STEM = range(1000, 1000 + 4 * BLOCK_TOKENS)
APPROACH_A = [*STEM, *range(5000, 5000 + 4 * BLOCK_TOKENS)]
APPROACH_B = [*STEM, *range(7000, 7000 + 4 * BLOCK_TOKENS)]


async def freeze(engine: Miniature, session: str, name: str) -> str | None:
    parent: str | None = (await engine.call(Op.FREEZE, session_id=session, window_name=name))["parent_window"]
    return parent


async def test_a_thaw_that_nobody_used_is_not_the_parent(engine: Miniature) -> None:
    await engine.serve(APPROACH_A, "alice")
    assert await freeze(engine, "alice", "a") is None
    await engine.serve(APPROACH_B, "bob")
    assert await freeze(engine, "bob", "b") is None
    await engine.call(Op.THAW, window_name="a", new_session_id="bob")
    await engine.serve([*APPROACH_B, *range(9000, 9000 + 2 * BLOCK_TOKENS)], "bob")
    assert await freeze(engine, "bob", "b2") == "b"


async def test_of_equal_beginnings_the_last_thawed_window_is_the_parent(engine: Miniature) -> None:
    await engine.serve(APPROACH_A, "alice")
    await freeze(engine, "alice", "a")
    await engine.call(Op.CLONE, source_window="a", target_window="copy")
    await engine.call(Op.THAW, window_name="copy", new_session_id="alice")
    await engine.serve([*APPROACH_A, *range(9000, 9000 + 2 * BLOCK_TOKENS)], "alice")
    assert await freeze(engine, "alice", "a2") == "copy"


async def test_the_salt_of_a_thaw_names_the_parent_in_another_session(engine: Miniature) -> None:
    await engine.serve(APPROACH_A, "alice")
    await freeze(engine, "alice", "a")
    salt = (await engine.call(Op.THAW, window_name="a"))["cache_salt"]
    await engine.serve([*APPROACH_A, *range(9000, 9000 + 2 * BLOCK_TOKENS)], "carol", salt)
    assert await freeze(engine, "carol", "c") == "a"
