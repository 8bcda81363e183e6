"""The tools with a canned engine: progress, confirmations, engines that stop and start again."""

from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.types import ElicitRequestParams, ElicitResult

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import DeleteArgs, FreezeArgs, StatusArgs
from cwm_connector.settings import Settings
from cwm_mcp.server.app import build_server
from tests.cwm_mcp.canned import DELETED, FROZEN, HEALTH, SAMPLE, STATUS, STORE, canned_engine
from tests.cwm_mcp.server.test_tools import ERAS, answer, error


class Person:
    """Answers the client's forms, and remembers the questions."""

    def __init__(self, action: str, content: dict[str, Any] | None = None) -> None:
        self.reply = ElicitResult.model_validate({"action": action, "content": content})
        self.questions: list[str] = []

    async def __call__(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        self.questions.append(params.message)
        return self.reply


@pytest.mark.parametrize("era", ERAS)
async def test_progress_comes_in_order_and_before_the_result(settings: Settings, era: str) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async with canned_engine(settings, FREEZE=FROZEN), Client(build_server(settings), mode=era) as client:
        arguments = {"session_id": "s", "window_name": "w", "tags": ["a"], "description": "d"}
        result = await client.call_tool("window_freeze", arguments, progress_callback=on_progress)
    assert result.structured_content == FROZEN
    # The socket's server leaves out what would come too fast, but never the last.
    assert heard[-1] == (3, 3, "blocks")
    assert [done for done, *_ in heard] == sorted({done for done, *_ in heard})


async def test_the_engine_is_told_what_the_client_said(settings: Settings) -> None:
    async with canned_engine(settings, FREEZE=FROZEN) as canned, Client(build_server(settings)) as client:
        await answer(client, "window_freeze", session_id="s", window_name="w", tags=["b", "a", "b"], head="h")
    assert canned.asked == [FreezeArgs(session_id="s", window_name="w", tags=["b", "a"], head="h")]


@pytest.mark.parametrize("era", ERAS)
async def test_an_engine_that_comes_back_is_used_by_the_same_server(filled: Path, settings: Settings, era: str) -> None:
    freeze = {"session_id": "s", "window_name": "w"}
    page = {"windows": [], "total": 99, "has_more": True}
    async with Client(build_server(settings), mode=era) as client:
        assert (await error(client, "window_freeze", **freeze))["code"] == 5001
        for _ in range(2):
            async with canned_engine(settings, FREEZE=FROZEN, LIST=page):
                assert await answer(client, "window_freeze", **freeze) == FROZEN
                assert (await answer(client, "window_list"))["total"] == 99
            assert (await error(client, "window_freeze", **freeze))["code"] == 5001
            assert (await answer(client, "window_list"))["total"] == 3


async def test_the_engines_own_error_reaches_the_client_whole(settings: Settings) -> None:
    taken = CWMError(Code.WINDOW_EXISTS, "there is a window named 'w'; choose another name", window_name="w")
    async with canned_engine(settings, FREEZE=taken), Client(build_server(settings)) as client:
        about = await error(client, "window_freeze", session_id="s", window_name="w")
    assert about == {"code": 3003, "message": taken.message, "retryable": False, "context": {"window_name": "w"}}


async def test_an_error_of_the_engine_is_not_papered_over_from_the_catalog(filled: Path, settings: Settings) -> None:
    broken = CWMError(Code.CORRUPT, "the catalog is damaged; restore it from a copy")
    async with canned_engine(settings, LIST=broken), Client(build_server(settings)) as client:
        assert (await error(client, "window_list"))["code"] == 4004


async def test_an_answer_that_breaks_the_contract_names_the_field(settings: Settings) -> None:
    short = {name: value for name, value in FROZEN.items() if name != "token_count"}
    async with canned_engine(settings, FREEZE=short), Client(build_server(settings)) as client:
        about = await error(client, "window_freeze", session_id="s", window_name="w")
    assert about["code"] == 9001
    assert "token_count" in about["message"]


# --- deleting ---


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("content", [{"confirm": True}, {}])
async def test_a_deletion_is_carried_out_once_the_person_agrees(
    settings: Settings, era: str, content: dict[str, Any]
) -> None:
    person = Person("accept", content)
    client = Client(build_server(settings), mode=era, elicitation_callback=person)
    async with canned_engine(settings, STATUS=STATUS, DELETE=DELETED) as canned, client:
        assert await answer(client, "window_delete", window_name="w") == DELETED
    assert person.questions == ["Delete window 'w' (700 tokens)? This can't be undone."]
    assert [args for args in canned.asked if not isinstance(args, StatusArgs)] == [DeleteArgs("w")]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("reply", [("decline", None), ("cancel", None), ("accept", {"confirm": False})])
async def test_nothing_is_deleted_unless_the_person_agrees(
    settings: Settings, era: str, reply: tuple[str, dict[str, Any] | None]
) -> None:
    person = Person(*reply)
    client = Client(build_server(settings), mode=era, elicitation_callback=person)
    async with canned_engine(settings, STATUS=STATUS, DELETE=DELETED) as canned, client:
        about = await error(client, "window_delete", window_name="w")
    assert about["code"] == 3001
    assert "force=true" in about["message"]
    assert len(person.questions) == 1
    assert not [args for args in canned.asked if isinstance(args, DeleteArgs)]


@pytest.mark.parametrize("era", ERAS)
async def test_force_deletes_without_a_question(settings: Settings, era: str) -> None:
    person = Person("decline")
    client = Client(build_server(settings), mode=era, elicitation_callback=person)
    async with canned_engine(settings, STATUS=STATUS, DELETE=DELETED), client:
        assert await answer(client, "window_delete", window_name="w", force=True) == DELETED
    assert person.questions == []


@pytest.mark.parametrize("era", ERAS)
async def test_the_guides_own_call_deletes_where_the_client_cannot_ask(settings: Settings, era: str) -> None:
    async with (
        canned_engine(settings, STATUS=STATUS, DELETE=DELETED),
        Client(build_server(settings), mode=era) as client,
    ):
        assert await answer(client, "window_delete", window_name="w") == DELETED


@pytest.mark.parametrize("era", ERAS)
async def test_nobody_is_asked_about_a_window_that_is_not_there(settings: Settings, era: str) -> None:
    person, nothing = Person("accept", {"confirm": True}), CWMError(Code.WINDOW_NOT_FOUND, "no window named 'w'; list")
    client = Client(build_server(settings), mode=era, elicitation_callback=person)
    async with canned_engine(settings, STATUS=nothing, DELETE=nothing), client:
        assert (await error(client, "window_delete", window_name="w"))["code"] == 2002
    async with Client(build_server(settings), mode=era, elicitation_callback=person) as client:
        assert (await error(client, "window_delete", window_name="w"))["code"] == 5001
        assert (await error(client, "window_delete", window_name="w w"))["code"] == 1002
    assert person.questions == []


# --- what the engine and the facade know together ---


async def test_health_joins_the_engines_components_and_vllms(settings: Settings) -> None:
    async with canned_engine(settings, HEALTH=HEALTH), Client(build_server(settings)) as client:
        health = await answer(client, "health_check")
        cpu = await answer(client, "health_check", component="cpu")
    status = {component["name"]: component["status"] for component in health["components"]}
    assert status == {"vllm": "unhealthy", "engine": "healthy", "cpu": "healthy", "redis": "healthy"}
    assert (health["status"], health["uptime_seconds"]) == ("unhealthy", 77.0)
    assert cpu["status"] == "healthy"


async def test_statistics_join_the_engines_store_and_vllms_counters(settings: Settings) -> None:
    async with canned_engine(settings, STATS={"kv_store": STORE}), Client(build_server(settings)) as client:
        stats = await answer(client, "cache_stats")
    assert stats["kv_store"] == STORE
    assert stats["vllm"]["connected"] is False


async def test_metrics_are_the_engines_samples(settings: Settings) -> None:
    async with canned_engine(settings, METRICS={"metrics": [SAMPLE]}), Client(build_server(settings)) as client:
        metrics = await answer(client, "get_metrics_data")
    assert [(sample["name"], sample["value"]) for sample in metrics["metrics"]] == [
        ("cwm_engine_up", 1),
        ("cwm_chunks", 3),
    ]
