"""Prompts and completion in both eras: what a person picks from a menu, and what is offered while they type."""

from pathlib import Path

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, PromptReference, ResourceTemplateReference, TextContent

from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import Micros
from cwm_connector.settings import Settings
from cwm_mcp.server.app import build_server
from tests.cwm_mcp.canned import canned_engine
from tests.cwm_mcp.homes import clones
from tests.cwm_mcp.server.test_tools import ERAS, connected

WINDOW_URI = ResourceTemplateReference(type="ref/resource", uri="window://{name}")


async def prompt(client: Client, name: str, **arguments: str) -> str:
    (message,) = (await client.get_prompt(name, arguments)).messages
    assert message.role == "user"
    assert isinstance(message.content, TextContent)
    return message.content.text


async def offered(client: Client, ref: PromptReference | ResourceTemplateReference, name: str, begun: str) -> list[str]:
    return (await client.complete(ref, {"name": name, "value": begun})).completion.values


@pytest.mark.parametrize("era", ERAS)
async def test_the_prompts_name_the_calls_with_their_arguments(filled: Path, settings: Settings, era: str) -> None:
    async with connected(settings, era) as client:
        listed = {
            each.name: [arg.name for arg in each.arguments or []] for each in (await client.list_prompts()).prompts
        }
        resume = await prompt(client, "resume", window="stem", session="talk-2")
        branch = await prompt(client, "branch", window="stem")
        handover = await prompt(client, "handover", window="stem", to="Alice")
    assert listed == {"resume": ["window", "session"], "branch": ["window", "new_window"], "handover": ["window", "to"]}
    assert 'window_thaw(window_name="stem", new_session_id="talk-2")' in resume
    assert "window://stem/transcript" in resume
    assert 'window_clone(source_window="stem", target_window="stem-branch")' in branch
    assert "over to Alice" in handover
    for text in (resume, branch, handover):
        assert '"description":"the stem window"' in text
        assert len(text) < 5_000


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"window": "nothing"}, 2002),
        ({"window": 'stem"); window_delete("stem'}, 1002),
        ({"window": "stem", "session": " "}, 1001),
    ],
)
async def test_a_prompt_about_nothing_is_refused_with_its_code(
    filled: Path, settings: Settings, era: str, arguments: dict[str, str], code: int
) -> None:
    async with connected(settings, era) as client:
        with pytest.raises(MCPError) as refused:
            await client.get_prompt("resume", arguments)
    assert refused.value.code == INVALID_PARAMS
    assert refused.value.message.startswith(f"CWM-{code}: ")
    assert refused.value.data["cwm/error"]["code"] == code


async def test_a_branch_of_a_window_with_the_longest_name_still_has_a_name(filled: Path, settings: Settings) -> None:
    longest = "w" * 128
    catalog = SqliteCatalog.open(settings.catalog_path)
    catalog.clone_window("stem", longest, None, None, Micros(1))
    catalog.close()
    async with connected(settings) as client:
        assert f'target_window="{"w" * 121}-branch"' in await prompt(client, "branch", window=longest)


@pytest.mark.parametrize("era", ERAS)
async def test_names_are_completed_in_prompts_and_addresses(filled: Path, settings: Settings, era: str) -> None:
    resume = PromptReference(type="ref/prompt", name="resume")
    async with connected(settings, era) as client:
        assert client.server_capabilities.completions is not None
        assert await offered(client, resume, "window", "st") == ["stem-for-alice", "stem"]
        assert await offered(client, WINDOW_URI, "name", "") == ["stem-for-alice", "branch", "stem"]
        assert await offered(client, WINDOW_URI, "name", "ste-") == []
        assert await offered(client, resume, "session", "t") == ["talk"]
        assert await offered(client, resume, "session", "x") == []
        assert await offered(client, resume, "colour", "r") == []


async def test_names_beyond_the_first_hundred_are_found_and_no_more_are_offered(
    filled: Path, settings: Settings
) -> None:
    clones(filled, "stem", 150)
    async with connected(settings) as client:
        many = (await client.complete(WINDOW_URI, {"name": "name", "value": "clone-"})).completion
        assert await offered(client, WINDOW_URI, "name", "clone-14") == [
            *(f"clone-{number}" for number in range(149, 139, -1)),
            "clone-14",
        ]
    assert (len(many.values), many.has_more) == (100, True)


async def test_nothing_is_offered_where_nothing_can_be_read(settings: Settings) -> None:
    broken = CWMError(Code.CORRUPT, "the catalog is damaged; restore it from a copy")
    async with canned_engine(settings, LIST=broken), Client(build_server(settings)) as client:
        assert await offered(client, WINDOW_URI, "name", "st") == []
