"""Client libraries as the tests use them: what they send, and what they report. With a real model: tests/engine."""

from pathlib import Path

import pytest

from tests.cwm_connector.test_behind_litellm import arrived, recorder
from tests.support.clients.base import Client
from tests.support.clients.libraries import Aider, BehindLiteLlm, LangChain, OpenAiSdk
from tests.support.clients.open_webui import START_S, OpenWebUi

pytestmark = pytest.mark.timeout(2 * START_S + 120)
"""Open WebUI takes longest to start."""


@pytest.mark.parametrize("kind", [OpenAiSdk, LangChain, BehindLiteLlm, OpenWebUi], ids=lambda kind: kind.name)
async def test_the_second_turn_holds_the_first_and_names_the_conversation_if_it_can(
    kind: type[Client], tmp_path: Path
) -> None:
    with recorder() as url:
        client = kind(tmp_path, url, "m")
        first = await client.say("hello")
        second = await client.say("again", first.session_id)
    session, messages = arrived()
    assert [(each["role"], each["content"]) for each in messages] == [
        ("user", "hello"),
        ("assistant", "Yes."),
        ("user", "again"),
    ]
    assert session == (second.session_id if kind.identified else None)
    assert (second.text, second.cache_read_tokens, second.prompt_tokens) == ("Yes.", 2, 3)


async def test_aider_puts_what_was_said_before_the_messages_of_its_own(tmp_path: Path) -> None:
    with recorder() as url:
        client = Aider(tmp_path, url, "m")
        await client.say("hello")
        second = await client.say("again")
    session, (system, *messages) = arrived()
    assert (session, system["role"]) == (None, "system")
    assert [(each["role"], each["content"].strip()) for each in messages[:2]] == [
        ("user", "hello"),
        ("assistant", "Yes."),
    ]
    assert messages[-1]["content"].startswith("again") and len(messages) == 5
    assert (second.text, second.cache_read_tokens, second.prompt_tokens) == ("Yes.", 2, 3)
