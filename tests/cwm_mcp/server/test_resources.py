"""Windows, their ids and text, and the lists, as MCP resources in both eras: a page, the next one, what goes wrong."""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.session import IncomingMessage
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR, INVALID_PARAMS, ResourceListChangedNotification, TextResourceContents

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.settings import Settings, load_settings
from cwm_mcp.server.app import build_server
from tests.cwm_mcp.canned import DELETED, FROZEN, STATUS, canned_engine
from tests.cwm_mcp.homes import clones, new_window
from tests.cwm_mcp.server.test_tools import ERAS, answer, connected
from tests.cwm_mcp.vllm_server import VllmServer, vllm_server

CLONED = {"source_window": "w", "target_window": "v", "shared_blocks": 3, "new_bytes": 0}


@pytest.fixture
def vllm() -> Iterator[VllmServer]:
    with vllm_server() as server:
        yield server


@pytest.fixture
def served(settings: Settings, vllm: VllmServer) -> Settings:
    return replace(settings, vllm_url=vllm.url)


def keep(home: Path, name: str, ids: Sequence[int]) -> None:
    """A window of exactly these tokens."""
    catalog = SqliteCatalog.open(load_settings({"home": home}).catalog_path)
    window = new_window(name, "talk", 0)
    catalog.commit_window(replace(window, token_ids=array("i", ids).tobytes(), restorable_tokens=0))
    catalog.close()


async def read(client: Client, uri: str) -> str:
    """The resource's text, which is never longer than a client shows whole."""
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    assert len(content.text.encode()) < 10_000
    return content.text


async def read_json(client: Client, uri: str) -> dict[str, Any]:
    value = json.loads(await read(client, uri))
    assert isinstance(value, dict)
    return value


async def refusal(client: Client, uri: str) -> MCPError:
    with pytest.raises(MCPError) as refused:
        await client.read_resource(uri)
    return refused.value


# --- what there is ---


@pytest.mark.parametrize("era", ERAS)
async def test_the_windows_there_are_and_the_lists_are_the_resources(
    filled: Path, settings: Settings, era: str
) -> None:
    async with connected(settings, era) as client:
        resources = {each.uri: each for each in (await client.list_resources()).resources}
        templates = {each.uri_template for each in (await client.list_resource_templates()).resource_templates}
        for uri in resources:
            await read_json(client, uri)
    windows = {"window://stem", "window://branch", "window://stem-for-alice"}
    assert set(resources) == {"windows://list", "sessions://list", *windows}
    assert "778 tokens of session talk" in (resources["window://stem"].description or "")
    assert templates == {
        *("windows://list{?offset}", "sessions://list{?offset}", "window://{name}"),
        *("window://{name}/tokens{?offset,limit}", "window://{name}/transcript{?offset,limit}"),
    }


async def test_a_thousand_windows_are_a_page_of_resources_and_pages_of_a_list(filled: Path, settings: Settings) -> None:
    clones(filled, "stem", 300)
    async with connected(settings) as client:
        listed = await client.list_resources()
        names, uri = [], "windows://list"
        while uri is not None:
            page = await read_json(client, uri)
            names += [window["name"] for window in page["windows"]]
            uri = page["next"]
        stem = await read_json(client, "window://stem")
    assert len(listed.model_dump_json(by_alias=True, exclude_none=True)) < 10_000
    assert len(listed.resources) > 20
    assert page["total"] == len(names) == len(set(names)) == 303
    assert (len(stem["children"]), stem["child_count"]) == (40, 302)


async def test_a_window_tells_what_list_and_status_know_of_it(filled: Path, settings: Settings) -> None:
    async with connected(settings) as client:
        window = await read_json(client, "window://branch")
        (listed,) = (await answer(client, "window_list", tags=["debug"]))["windows"]
        status = await answer(client, "window_status", window_name="branch")
    assert {key: window[key] for key in listed} == listed
    assert window["tiers"] == status["kv_cache"]["tiers"]
    assert (window["children"], window["child_count"]) == ([], 0)


async def test_sessions_are_those_of_the_tool(filled: Path, settings: Settings) -> None:
    async with connected(settings) as client:
        page = await read_json(client, "sessions://list")
        listed = await answer(client, "session_list")
    assert page["sessions"] == listed["sessions"]
    assert page["next"] is None


# --- tokens and text ---


@pytest.mark.parametrize("era", ERAS)
async def test_the_token_ids_come_page_by_page_and_are_the_recorded_ones(
    home: Path, settings: Settings, era: str
) -> None:
    ids = list(range(100_000, 102_500))
    keep(home, "long", ids)
    async with connected(settings, era) as client:
        heard, uri = [], "window://long/tokens"
        while uri is not None:
            page = await read_json(client, uri)
            heard += page["token_ids"]
            uri = page["next"]
        (whole,) = (await client.read_resource("window://long/tokens?limit=100000")).contents
    assert heard == ids
    assert page["token_count"] == 2_500
    assert isinstance(whole, TextResourceContents)
    assert json.loads(whole.text)["token_ids"] == ids


async def test_the_engine_is_asked_for_the_ids_where_there_is_one(settings: Settings) -> None:
    tokens = {"window_name": "w", "token_ids": array("i", [5, 6, 7]).tobytes()}
    async with canned_engine(settings, TOKENS=tokens), connected(settings) as client:
        assert (await read_json(client, "window://w/tokens?offset=1"))["token_ids"] == [6, 7]


@pytest.mark.parametrize(
    "unit", ["The lock at Harrow was drained. ", "Ärger mit dem Tor 🚧 ", "水門の修理。", "responsibilities "]
)
async def test_the_transcript_read_page_by_page_is_the_whole_text(
    home: Path, served: Settings, vllm: VllmServer, unit: str
) -> None:
    ids = vllm.ids(unit * 1_000)
    keep(home, "long", ids)
    text, uri = "", "window://long/transcript"
    async with connected(served) as client:
        while uri:
            page, _, more = (await read(client, uri)).partition("\n\n[tokens ")
            text += page
            uri = more.partition("go on at ")[2].removesuffix("]")
    assert text == vllm.text(ids)
    assert len(vllm.asked["/detokenize"]) > 1


async def test_no_page_of_the_transcript_ends_within_a_character(
    home: Path, served: Settings, vllm: VllmServer
) -> None:
    keep(home, "signs", vllm.ids("🚧🛶🌊" * 20))
    async with connected(served) as client:
        pages = [await read(client, f"window://signs/transcript?limit={limit}") for limit in range(4, 12)]
    assert len(pages) == 8
    for page in pages:
        text = page.partition("\n\n[tokens ")[0]
        assert text
        assert "🚧🛶🌊🚧🛶🌊".startswith(text)


async def test_without_vllm_the_transcript_says_what_is_missing_and_the_ids_are_there(
    filled: Path, settings: Settings
) -> None:
    async with connected(settings) as client:
        refused = await refusal(client, "window://stem/transcript")
        assert (await read_json(client, "window://stem/tokens"))["token_count"] == 778
    assert refused.code == INTERNAL_ERROR
    assert refused.message.startswith("CWM-5001: no answer from vLLM at http://127.0.0.1:9")
    assert (refused.data["cwm/error"]["code"], refused.data["cwm/error"]["retryable"]) == (5001, True)


# --- what goes wrong ---


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("window://nothing", 2002),
        ("window://nothing/tokens", 2002),
        ("window://nothing/transcript", 2002),
        ("window://.hidden", 1002),
        ("window://a%2Fb", 1002),
        ("window://stem/blocks", None),
        ("windows://others", None),
        ("http://stem", None),
    ],
)
async def test_what_is_not_there_is_an_unknown_resource(
    filled: Path, settings: Settings, era: str, uri: str, code: int | None
) -> None:
    async with connected(settings, era) as client:
        refused = await refusal(client, uri)
    assert refused.code == INVALID_PARAMS
    assert refused.message.startswith(f"CWM-{code}: " if code else "Unknown resource: ")
    # The library's own, and its data: the code stands in the text.
    assert refused.data == {"uri": uri}


@pytest.mark.parametrize(
    "uri",
    [
        "window://stem/tokens?offset=-1",
        "window://stem/tokens?offset=x",
        "window://stem/tokens?limit=0",
        "window://stem/tokens?limit=100001",
        "window://stem/transcript?limit=2001",
        "windows://list?offset=9223372036854775808",
        "sessions://list?offset=1.5",
    ],
)
async def test_a_wrong_page_is_1003(filled: Path, settings: Settings, uri: str) -> None:
    async with connected(settings) as client:
        refused = await refusal(client, uri)
    assert refused.code == INVALID_PARAMS
    assert refused.data["cwm/error"]["code"] == 1003


async def test_beyond_the_end_is_an_empty_page(filled: Path, settings: Settings) -> None:
    async with connected(settings) as client:
        tokens = await read_json(client, "window://stem/tokens?offset=778")
        windows = await read_json(client, "windows://list?offset=3")
        assert await read(client, "window://stem/transcript?offset=5000") == ""
    assert (tokens["token_ids"], tokens["next"]) == ([], None)
    assert (windows["windows"], windows["next"]) == ([], None)


# --- changes ---


CHANGES: dict[str, dict[str, Any]] = {
    "window_freeze": {"session_id": "s", "window_name": "w"},
    "window_clone": {"source_window": "w", "target_window": "v"},
    "window_delete": {"window_name": "w", "force": True},
}


@pytest.mark.parametrize(("tool", "arguments"), CHANGES.items())
async def test_listeners_hear_of_another_set_of_windows(
    settings: Settings, tool: str, arguments: dict[str, Any]
) -> None:
    engine = canned_engine(settings, FREEZE=FROZEN, CLONE=CLONED, STATUS=STATUS, DELETE=DELETED)
    async with engine, Client(build_server(settings)) as client, client.listen(resources_list_changed=True) as heard:
        await answer(client, tool, **arguments)
        with anyio.fail_after(10):
            event = await anext(aiter(heard))
    assert type(event).__name__ == "ResourcesListChanged"


@pytest.mark.parametrize(("tool", "arguments"), CHANGES.items())
async def test_a_client_of_the_older_era_is_told_that_lists_change_and_when(
    settings: Settings, tool: str, arguments: dict[str, Any]
) -> None:
    heard = anyio.Event()

    async def on_message(message: IncomingMessage) -> None:
        if isinstance(message, ResourceListChangedNotification):
            heard.set()

    engine = canned_engine(settings, FREEZE=FROZEN, CLONE=CLONED, STATUS=STATUS, DELETE=DELETED)
    async with engine, Client(build_server(settings), mode="legacy", message_handler=on_message) as client:
        assert client.server_capabilities.resources is not None
        assert client.server_capabilities.resources.list_changed is True
        await answer(client, tool, **arguments)
        with anyio.fail_after(10):
            await heard.wait()
