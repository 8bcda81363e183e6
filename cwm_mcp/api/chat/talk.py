"""The turns of a conversation after a window, each of them sent as the exact tokens of all before it."""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from cwm_connector.settings import Settings
from cwm_mcp.api.chat.streaming import pieces
from cwm_mcp.api.continuation import prompt_after


@dataclass(frozen=True, slots=True)
class Turn:
    """How long a turn was, in tokens."""

    prompt: int
    cached: int | None
    """None where vLLM does not say."""
    generated: int


class Talk:
    """A conversation that has begun with a window's tokens."""

    def __init__(self, settings: Settings, recorded: Sequence[int], session_id: str, salt: str) -> None:
        self._settings = settings
        self._said = list(recorded)
        self._session_id = session_id
        self._salt = salt

    async def say(self, text: str, show: Callable[[str], None], max_tokens: int) -> Turn:
        """Send the user's words and pass the reply to `show` piece by piece.

        The conversation grows by both, also if the reply is interrupted after its first word.
        Raises: what `vllm_http.post` raises, `Code.ARGUMENT` if no token is left for a reply.
        """
        prompt = await prompt_after(self._settings, self._said, text)
        body = {
            "prompt": list(prompt.token_ids),
            "max_tokens": min(max_tokens, prompt.room),
            "cache_salt": self._salt,
        }
        generated: list[int] = []
        cached = None
        try:
            async with aclosing(pieces(self._settings, body, self._session_id)) as reply:
                async for piece in reply:
                    generated += piece.token_ids
                    cached = piece.cached_tokens if piece.cached_tokens is not None else cached
                    if piece.text:
                        show(piece.text)
        finally:
            if generated:
                self._said = [*prompt.token_ids, *generated]
        return Turn(len(prompt.token_ids), cached, len(generated))
