"""How a conversation is recognised whose client says nothing of itself: by how it began.

Engine thread only. A request continues a conversation if it begins with what that one first asked, whatever was said
since: so the next turn, a regenerated answer and an edited later message all belong to it, and another question behind
the same system prompt does not.

vLLM hashes full blocks only. A beginning is therefore kept as the chained hash of its last full block, which stands for
every token before it, and the tokens behind that block. To look a request up costs one probe of a hash table for each
of its blocks, and a comparison of a few tokens with each conversation that agrees that far.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import BlockHash
    from vllm.v1.request import Request

PREFIX: Final = "anon-"
"""Begins the session ids that are made up here."""
MAX_ALIKE: Final = 256
"""Conversations whose beginnings have the same full blocks; the one begun first is not recognised any more."""
_LEFT_OUT: Final = 4
"""Tokens at a prompt's end that are not compared: there a template opens the answer (an empty thought, say), and may
render that otherwise once it is history. Short prompts leave out an eighth."""
_NO_BLOCK: Final = b""


@dataclass(frozen=True, slots=True)
class _Beginning:
    """A prompt's tokens from `start`, where its last full block ends, but for the very last ones."""

    start: int
    rest: list[int] = field(repr=False)

    def begins(self, token_ids: Sequence[int]) -> bool:
        return token_ids[self.start : self.start + len(self.rest)] == self.rest


class Beginnings:
    """Which conversation began how. `name` is the session id that its caller gives it."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._alike: dict[bytes, OrderedDict[str, _Beginning]] = {}
        self._block_of: dict[str, bytes] = {}

    def add(self, name: str, request: "Request") -> None:
        """Keeps a request that was just added, its prompt and nothing more, as the beginning of `name`."""
        tokens = request.all_token_ids
        compared = len(tokens) - min(_LEFT_OUT, len(tokens) // 8)
        blocks = compared // self._block_tokens
        block = request.block_hashes[blocks - 1] if blocks else _NO_BLOCK
        start = blocks * self._block_tokens
        alike = self._alike.setdefault(block, OrderedDict())
        alike[name] = _Beginning(start, list(tokens[start:compared]))
        self._block_of[name] = block
        if len(alike) > MAX_ALIKE:
            self.remove(next(iter(alike)))

    def remove(self, name: str) -> None:
        block = self._block_of.pop(name, None)
        if block is None:
            return
        del self._alike[block][name]
        if not self._alike[block]:
            del self._alike[block]

    def find(self, request: "Request") -> str | None:
        """The conversation that the request continues; of several the one with the longest beginning."""
        tokens = request.all_token_ids
        for block in self._known(request.block_hashes):
            fitting = [(len(each.rest), name) for name, each in self._alike[block].items() if each.begins(tokens)]
            if fitting:
                return max(fitting)[1]
        return None

    def _known(self, hashes: "Sequence[BlockHash]") -> Iterator[bytes]:
        """The ends of beginnings among the hashes, the deepest first."""
        return filter(self._alike.__contains__, chain(reversed(hashes), (_NO_BLOCK,)))
