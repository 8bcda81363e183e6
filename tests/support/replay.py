"""Sends the recorded requests of tests/recordings to a real engine, as their clients sent them."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import httpx

from tests.support.mcp_client import Tools
from tests.support.recordings import Recorded

MAX_TOKENS: Final = 8
"""An answer's length. What the model says can't be the recorded answer, so it need not be long."""
_LIMIT_S: Final = 120
_LISTED_WITHIN_S: Final = 10.0
_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_NAMES: Final = ("x-claude-code-session-id", "thread-id", "x-session-id", "session_id", "x-openwebui-chat-id")


@dataclass(frozen=True, slots=True)
class Sent:
    """How the engine answered. Without figures if the request was aborted or is none that a model answers."""

    prompt_tokens: int | None
    answer_tokens: int | None


def is_replayable(request: Recorded) -> bool:
    """Return whether the request holds all of its prompt. Some refer to an answer that only the recorded server had."""
    return "previous_response_id" not in (request.body or {})


def named_session(request: Recorded) -> str | None:
    """Return the id of the conversation that the client's headers give."""
    headers = {name.lower(): value for name, value in request.headers}
    return next((headers[name] for name in _NAMES if name in headers), None)


def last_text(request: Recorded) -> str:
    """Return the last text of the last message, which occurs in the prompt's tokens."""
    body = request.body or {}
    messages = body.get("messages") or body.get("input") or []
    if isinstance(messages, str):
        return messages
    last = messages[-1]
    content = last.get("content") or last.get("output")
    if isinstance(content, list):
        content = next(_text(part) for part in reversed(content) if _text(part))
    return str(content).strip()


def _text(part: Mapping[str, Any]) -> str:
    inner = part.get("text") or part.get("content") or ""
    return inner if isinstance(inner, str) else "".join(_text(each) for each in inner)


async def active_session(cwm: Tools, since: datetime) -> str:
    """Return the session that was active last, at this time or later.

    A list may be a little older than an answer that has come already, so ask again.
    """
    deadline = time.monotonic() + _LISTED_WITHIN_S
    while True:
        latest = (await cwm.call("session_list", limit=1))["sessions"]
        spoken_at = latest[0]["last_active_at"] if latest else None
        if spoken_at is not None and datetime.fromisoformat(spoken_at) >= since:
            return str(latest[0]["session_id"])
        assert time.monotonic() < deadline, "no session has been active since then"
        await asyncio.sleep(0.02)


async def send(url: str, model: str, request: Recorded) -> Sent:
    """Send the request, with the served model's name and a short answer. Close the stream early if the client did.

    Raises: RuntimeError with the engine's words if it refuses a request that the client got an answer to.
    """
    async with httpx.AsyncClient(base_url=url, timeout=_LIMIT_S, trust_env=False) as client:
        if request.body is None:
            await client.request(request.method, request.path, headers=request.headers)
            return Sent(None, None)
        body = _servable(request, model)
        async with client.stream(request.method, request.path, headers=request.headers, json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise RuntimeError(f"{request.name}: {response.status_code} {(await response.aread()).decode()[:2000]}")
            if request.aborted:
                await _until_the_answer_begins(response)
                return Sent(None, None)
            answer = (await response.aread()).decode()
    if "count_tokens" in request.path:
        return Sent(None, None)
    usage = _usage(answer, streamed=bool(body.get("stream")))
    prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    # Anthropic's input tokens leave out those that were read from the cache or are new in it.
    cached = sum(usage.get(f"cache_{kind}_input_tokens") or 0 for kind in ("read", "creation"))
    return Sent(prompt + cached, usage.get("completion_tokens", usage.get("output_tokens", 0)))


async def _until_the_answer_begins(response: httpx.Response) -> None:
    """Read up to the first part of the text. The prompt has been computed by then."""
    async for line in response.aiter_lines():
        if "delta" in line:
            return


def _servable(request: Recorded, model: str) -> dict[str, Any]:
    assert request.body is not None
    body = {name: value for name, value in request.body.items() if name not in _LIMITS}
    body["model"] = model
    body["max_output_tokens" if "/responses" in request.path else "max_tokens"] = MAX_TOKENS
    if request.aborted:
        body["stream"] = True
    if body.get("stream") and "/chat/" in request.path:
        body["stream_options"] = {"include_usage": True}
    return body


def _usage(answer: str, streamed: bool) -> dict[str, Any]:
    """Return the last figures that the answer gives."""
    if not streamed:
        return dict(json.loads(answer)["usage"])
    found: dict[str, Any] = {}
    for line in answer.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            for holder in (event, event.get("message") or {}, event.get("response") or {}):
                found |= holder.get("usage") or {}
    return found
