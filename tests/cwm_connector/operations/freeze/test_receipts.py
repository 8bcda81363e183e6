"""freezer.py and queries.py: what a freeze and the list of sessions say about heads."""

from pathlib import Path
from typing import Any

from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.stores import text

MAIN, AGENT = text(1, chunks=4), text(2, chunks=2)


async def freeze(engine: Miniature, name: str, **args: Any) -> dict[str, Any]:
    return await engine.call(Op.FREEZE, session_id="alice", window_name=name, **args)


async def test_the_only_head_is_named_and_there_are_no_others(engine: Miniature) -> None:
    await engine.serve(MAIN, "alice")
    frozen = await freeze(engine, "w")
    assert (frozen["head"], frozen["head_reason"]) == ("h1", "it is the session's only head")
    assert frozen["other_heads"] == [] and "more_heads" not in frozen


async def test_a_freeze_says_which_head_it_took_why_and_which_others_there_are(engine: Miniature) -> None:
    await engine.serve(MAIN, "alice")
    await engine.serve(AGENT, "alice/agent")
    frozen = await freeze(engine, "w")
    assert (frozen["head"], frozen["token_count"]) == ("h1", 128)
    assert frozen["head_reason"] == "it is the conversation that was continued last"
    (other,) = frozen["other_heads"]
    assert list(other) == ["head", "token_count", "last_active_at", "title"]
    assert (other["head"], other["token_count"], other["title"]) == ("agent", 64, None)
    assert other["last_active_at"].endswith("Z")
    asked = await freeze(engine, "v", head="agent")
    assert (asked["head"], asked["head_reason"]) == ("agent", "it is the head that was asked for")
    assert [each["head"] for each in asked["other_heads"]] == ["h1"]


async def test_at_most_20_other_heads_are_named_the_last_active_first(engine: Miniature) -> None:
    await engine.serve(MAIN, "alice")
    for number in range(25):
        await engine.serve(text(100 + number, chunks=1), f"alice/agent-{number}")
    frozen = await freeze(engine, "w")
    assert frozen["head"] == "h1" and frozen["more_heads"] == 5
    assert [each["head"] for each in frozen["other_heads"]] == [f"agent-{number}" for number in range(24, 4, -1)]


async def test_the_list_of_sessions_shows_the_head_that_a_freeze_takes(engine: Miniature) -> None:
    await engine.serve(MAIN, "alice")
    await engine.serve(AGENT, "alice/agent")
    (session,) = (await engine.call(Op.SESSIONS))["sessions"]
    frozen = await freeze(engine, "w")
    assert (session["head"], session["head_reason"]) == (frozen["head"], frozen["head_reason"])
    assert session["token_count"] == frozen["token_count"]


async def test_a_session_that_only_the_catalog_remembers_has_no_head(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    await engine.serve(MAIN, "alice")
    await freeze(engine, "w")
    engine.close()
    engine = await Miniature.started(tmp_path)
    (session,) = (await engine.call(Op.SESSIONS))["sessions"]
    assert (session["head"], session["head_reason"]) == (None, None)
    engine.close()
