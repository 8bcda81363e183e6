"""Going on from a window's exact tokens: the new turn's ids, the reply, and the text of what is recorded.

A chat template may render a conversation's past otherwise than it was when it was said (a system prompt moved, a
thought left out), and then nothing cached fits. So the past is never rendered: the recorded ids are sent as they are,
with only the new turn's ids behind them, as a completion by token ids.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.sequences import common_end_length
from cwm_connector.settings import Settings
from cwm_mcp.api.vllm_http import Refused, post
from cwm_mcp.settings import without_secrets

DEFAULT_MAX_TOKENS: Final = 512
_TEXT_TIMEOUT_S: Final = 30.0
_REPLY_TIMEOUT_S: Final = 600.0
"""A long window of which much must be computed again takes minutes to its first token."""
_SAID: Final = ("yes", "no")
"""Two answers that end in different tokens."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is sent: the recorded ids and the new turn's."""

    token_ids: Sequence[int] = field(repr=False)
    room: int
    """Tokens that the model's context leaves for the reply."""


@dataclass(frozen=True, slots=True)
class Reply:
    text: str = field(repr=False)
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int | None
    """None where vLLM does not say (it needs --enable-prompt-tokens-details)."""
    generated_tokens: int


def token_ids(recorded: bytes) -> Sequence[int]:
    """Return a window's ids from the form in which the engine and the catalog give them: little-endian int32."""
    ids = array("i")
    ids.frombytes(recorded)
    return ids


async def prompt_after(settings: Settings, recorded: Sequence[int], text: str) -> Prompt:
    """Return the recorded ids with `text` as the user's next turn, or as plain text if the model has no chat template.

    Raises: what `vllm_http.post` raises, `Code.ARGUMENT` if no token is left for a reply.
    """
    turn, limit = await _new_turn(settings, text)
    ids = [*recorded, *turn[_already_said(recorded, turn) :]]
    room = limit - len(ids)
    if room < 1:
        raise CWMError(
            Code.ARGUMENT,
            f"the window's {len(recorded)} tokens and the prompt leave no room for a reply in the model's {limit}; "
            "shorten the prompt, or serve the model with a larger --max-model-len",
        )
    return Prompt(ids, room)


async def reply_to(settings: Settings, prompt: Prompt, max_tokens: int | None, session_id: str, salt: str) -> Reply:
    """Return the model's reply of at most `max_tokens`, in the session and with the salt of a thaw."""
    body = {
        "prompt": list(prompt.token_ids),
        "max_tokens": min(max_tokens or DEFAULT_MAX_TOKENS, prompt.room),
        "cache_salt": salt,
    }
    answer = await post(
        settings, "/v1/completions", body, timeout_s=_REPLY_TIMEOUT_S, headers={"X-Session-ID": session_id}
    )
    try:
        (choice,), usage = answer["choices"], answer["usage"]
        details = usage.get("prompt_tokens_details") or {}
        return Reply(
            text=choice["text"],
            finish_reason=choice["finish_reason"],
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=details.get("cached_tokens"),
            generated_tokens=usage["completion_tokens"],
        )
    except (KeyError, TypeError, ValueError):
        raise _not_vllm(settings) from None


async def text_of(settings: Settings, ids: Sequence[int]) -> str:
    """Return the ids as text, special tokens included."""
    answer = await post(settings, "/detokenize", {"tokens": list(ids)}, timeout_s=_TEXT_TIMEOUT_S)
    if not isinstance(answer.get("prompt"), str):
        raise _not_vllm(settings)
    return str(answer["prompt"])


async def _new_turn(settings: Settings, text: str) -> tuple[list[int], int]:
    """Return the ids between the model's last words and its next ones, and the model's limit."""
    try:
        rendered = [await _tokenize(settings, {"messages": _conversation(said, text)}) for said in _SAID]
    except Refused as refusal:
        if "chat template" not in refusal.message:
            raise
        return await _tokenize(settings, {"prompt": text, "add_special_tokens": False})
    (one, limit), (other, _) = rendered
    # Two conversations that differ in the model's words end with all that follows these.
    return one[len(one) - common_end_length(one, other) :], limit


def _conversation(said: str, text: str) -> list[dict[str, str]]:
    """Return a conversation that goes on with `text`. The words before it do not matter."""
    return [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": text},
    ]


async def _tokenize(settings: Settings, what: dict[str, Any]) -> tuple[list[int], int]:
    answer = await post(settings, "/tokenize", what, timeout_s=_TEXT_TIMEOUT_S)
    ids, limit = answer.get("tokens"), answer.get("max_model_len")
    if not isinstance(ids, list) or not isinstance(limit, int):
        raise _not_vllm(settings)
    return ids, limit


def _already_said(recorded: Sequence[int], turn: Sequence[int]) -> int:
    """Return how many of the turn's first ids are the last ones recorded.

    A turn begins with the end of the model's words. That is recorded if something followed it, and not if vLLM
    sampled it last: then its keys and values were never computed.
    """
    longest = min(len(recorded), len(turn))
    return next((length for length in range(longest, 0, -1) if list(recorded[-length:]) == list(turn[:length])), 0)


def _not_vllm(settings: Settings) -> CWMError:
    return CWMError(
        Code.ENGINE_UNREACHABLE,
        f"the server at {without_secrets(settings.vllm_url)} does not speak vLLM's API; set CWM_VLLM_URL",
    )
