"""The recorded traffic of real clients against a real vLLM: a freeze takes the conversation at every point.

Every recorded request that holds its whole prompt is sent in order, as its client sent it. After each request that is
not a turn, after each one that was cut off, and at the end of each session, the session is frozen without naming a
head. The window must hold the last turn that the recording's labels name. The model has two layers of random weights,
because only what was asked matters here, and not what is answered. Its chat template shows the model the tools, as
those of larger models do.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import pytest
from mcp.types import TextResourceContents

from tests.support.engine import SERVED_NAME, Engine
from tests.support.mcp_client import Tools, mcp_client
from tests.support.recordings import Recorded, clients, load
from tests.support.replay import Sent, active_session, is_replayable, last_text, named_session, send

CHARACTERS: Final = 5
"""Of a recorded request's JSON to a token of its prompt, at most."""
END_TOKENS: Final = 1_000
"""The part of a window in which its last message is looked for."""

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of the main conversation, and the session that the engine put it into."""

    request: Recorded
    sent: Sent
    session_id: str


class Replay:
    """The traffic of one client, and the last turn of each of its sessions."""

    def __init__(self, engine: Engine, cwm: Tools, requests: Sequence[Recorded]) -> None:
        self._engine = engine
        self._cwm = cwm
        self._requests = requests
        self._last: dict[str, Turn] = {}
        self.wrong: list[str] = []

    async def run(self) -> None:
        """Send everything, and freeze at each point that matters."""
        block_tokens = await self._engine.api.block_tokens()
        concerned: str | None = None
        for request in self._requests:
            session_id = named_session(request) or concerned
            if request.purpose == "turn" and session_id != concerned and concerned is not None:
                await self._check(concerned, request, "before")
            began = datetime.now(UTC)
            sent = await send(self._engine.url, SERVED_NAME, request)
            if _is_turn(request) and _fills_a_block(request, sent, block_tokens):
                concerned = await self._session_of(request, began)
                self._last[concerned] = Turn(request, sent, concerned)
            if concerned is not None and (not _is_turn(request) or request.aborted):
                await self._check(concerned, request, "after")
        if concerned is not None:
            await self._check(concerned, self._requests[-1], "at the end, after")

    async def _session_of(self, request: Recorded, began: datetime) -> str:
        """Return the session that the request belongs to, and note it if the client named another."""
        session_id = await active_session(self._cwm, began)
        named = named_session(request)
        if named is not None and session_id != named:
            self.wrong.append(f"{request.name} went to session {session_id} and not to {named}")
        return session_id

    async def _check(self, session_id: str, request: Recorded, when: str) -> None:
        """Freeze the session, and note it if the window is not its last turn."""
        turn = self._last[session_id]
        name = f"{request.client}-{request.number}-{when.split(maxsplit=1)[0]}"
        frozen = await self._cwm.call("window_freeze", session_id=session_id, window_name=name)
        text = await self._end_of(name, frozen["token_count"])
        place = f"{when} {request.name}: expected the turn {turn.request.name}"
        if last_text(turn.request) not in text:
            self.wrong.append(f"{place}, but its words are missing in {text[-300:]!r}")
        elif turn.sent.prompt_tokens is not None and turn.sent.answer_tokens is not None:
            tokens = frozen["token_count"]
            if not turn.sent.prompt_tokens <= tokens <= turn.sent.prompt_tokens + turn.sent.answer_tokens:
                self.wrong.append(f"{place} with {turn.sent}, but the window has {tokens} tokens")

    async def _end_of(self, name: str, tokens: int) -> str:
        uri = f"window://{name}/transcript?offset={max(0, tokens - END_TOKENS)}"
        (content,) = (await self._cwm.client.read_resource(uri)).contents
        assert isinstance(content, TextResourceContents)
        return content.text


def _fills_a_block(request: Recorded, sent: Sent, block_tokens: int) -> bool:
    """Return whether the turn's prompt fills a block of the engine, without which there is nothing to freeze.

    One that was aborted did not say how many tokens it had.
    """
    if sent.prompt_tokens is None:
        return len(json.dumps(request.body)) >= CHARACTERS * block_tokens
    return sent.prompt_tokens >= block_tokens


def _is_turn(request: Recorded) -> bool:
    """Return whether a freeze of its session would mean this request. A subagent may have a session of its own."""
    if request.purpose == "subagent":
        return named_session(request) is not None and not any("agent-id" in name.lower() for name, _ in request.headers)
    return request.purpose == "turn"


@pytest.mark.parametrize("client", clients())
async def test_a_freeze_takes_the_last_turn_of_the_conversation(replay_engine: Engine, client: str) -> None:
    async with mcp_client(replay_engine) as cwm:
        replay = Replay(replay_engine, cwm, [request for request in load(client) if is_replayable(request)])
        await replay.run()
    assert replay.wrong == [], json.dumps(replay.wrong, indent=1)
