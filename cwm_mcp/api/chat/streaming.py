"""Read a completion from vLLM while the model writes it."""

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.settings import Settings
from cwm_mcp.api.vllm_http import refusal_of, unreachable
from cwm_mcp.network import base_url, open_client

_PATH: Final = "/v1/completions"
_SILENCE_S: Final = 600.0
"""A long window of which much must be computed again takes minutes to its first token."""
_CONNECT_S: Final = 3.0
_DATA: Final = "data:"
_END: Final = "[DONE]"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the reply. The last one has no text, and the tokens of the prompt that vLLM found in a cache."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    cached_tokens: int | None = None


async def pieces(settings: Settings, body: Mapping[str, Any], session_id: str) -> AsyncGenerator[Piece]:
    """Yield the reply piece by piece. Closing the iterator ends the request in vLLM too.

    Raises: what `vllm_http.post` raises.
    """
    import httpx

    asked = {**body, "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    timeout = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S)
    try:
        async with (
            open_client(settings, timeout) as client,
            client.stream(
                "POST", f"{base_url(settings)}{_PATH}", json=asked, headers={"X-Session-ID": session_id}
            ) as response,
        ):
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                raise refusal_of(settings, _PATH, response.status_code, text)
            async for line in response.aiter_lines():
                if line.startswith(_DATA) and (data := line.removeprefix(_DATA).strip()) != _END:
                    yield _piece(data)
    except httpx.ReadTimeout:
        raise CWMError(Code.ENGINE_TIMEOUT, f"vLLM has written nothing for {_SILENCE_S:g} s; try again later") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as problem:
        raise unreachable(settings, problem) from None


def _piece(data: str) -> Piece:
    """Return what one event says. Raises: `Code.ENGINE_UNREACHABLE` with vLLM's reason, or for what is no event."""
    try:
        event = json.loads(data)
        if "error" in event:
            raise CWMError(Code.ENGINE_UNREACHABLE, f"vLLM gave up the reply: {event['error'].get('message', '')}")
        usage = event.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        choice = event["choices"][0] if event.get("choices") else {}
        return Piece(
            text=choice.get("text") or "",
            token_ids=tuple(choice.get("token_ids") or ()),
            cached_tokens=details.get("cached_tokens"),
        )
    except (ValueError, AttributeError, TypeError):
        raise CWMError(Code.ENGINE_UNREACHABLE, "the server does not speak vLLM's API; set CWM_VLLM_URL") from None
