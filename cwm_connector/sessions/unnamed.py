"""Recognise the conversations of clients that send no session id, by how the conversations began.

Engine thread only. Nothing here blocks.

A request continues a conversation if it begins with the conversation's first prompt. The next turn, a regenerated
answer and an edited later message therefore all belong to the conversation. Another question after the same system
prompt does not.

vLLM hashes full blocks only. A beginning is therefore stored as the hash of its last full block, which covers all
tokens before it, and the tokens after that block. A look-up costs one probe of a hash table for each number of full
blocks that a beginning has, and a comparison of a few tokens for each conversation with the same hash.
"""

import secrets
import sys
from array import array
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cwm_connector.core.types import Micros, salt_hash

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import BlockHash
    from vllm.v1.request import Request

PREFIX: Final = "anon-"
"""The first characters of the ids of anonymous sessions."""
SALTED: Final = "salt-"
"""The first characters of the ids of sessions that are identified by their salt."""
MAX_ALIKE: Final = 256
"""Conversations whose beginnings have the same full blocks. When there are more, the oldest is forgotten."""
_LEFT_OUT: Final = 4
"""Tokens at the end of a prompt that are not compared, at most an eighth of a short prompt. The chat template opens the
answer there, for example with an empty thought, and may render it differently once it is part of the history."""
_NO_BLOCK: Final = b""
_BEGINNING_BYTES: Final = 600
"""Python's own overhead for a beginning: the object and its entries in the two tables."""


Continued = Callable[[str], str | None]
"""Takes the id of a request. See `WindowMatches.continued`."""


def session_of_salt(cache_salt: str) -> str:
    """Return the id of a session that is identified by its salt alone."""
    return f"{SALTED}{salt_hash(cache_salt).hex()[:24]}"


def compared_tokens(prompt_tokens: int) -> int:
    """Return how many tokens of a prompt are compared."""
    return prompt_tokens - min(_LEFT_OUT, prompt_tokens // 8)


def new_name(now: Micros, taken: Container[str]) -> str:
    """Return a name with the time and a random part, so that two engines hardly ever choose the same name."""
    begun = datetime.fromtimestamp(now / 1e6, UTC)
    name = f"{PREFIX}{begun:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    return new_name(now, taken) if name in taken else name


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The tokens of a prompt from `start`, the end of its last full block. The last few tokens are left out."""

    start: int
    rest: bytes = field(repr=False)
    """Their ids, packed, so that hundreds of beginnings are compared in a few microseconds."""


class Beginnings:
    """How each conversation began. The caller gives each one a `name`, its session id."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._alike: dict[bytes, OrderedDict[str, _Beginning]] = {}
        self._with_blocks: Counter[int] = Counter()
        """How many of the tables in `_alike` are for beginnings with so many full blocks."""
        self._lengths: list[int] = []
        """The numbers of blocks in `_with_blocks`, in order."""
        self._block_of: dict[str, bytes] = {}

    def add(self, name: str, request: "Request") -> None:
        """Store the prompt of a request that was just added as the beginning of `name`."""
        tokens = request.all_token_ids
        compared = compared_tokens(len(tokens))
        blocks = compared // self._block_tokens
        block = request.block_hashes[blocks - 1] if blocks else _NO_BLOCK
        start = blocks * self._block_tokens
        alike = self._alike.get(block)
        if alike is None:
            alike = self._alike[block] = OrderedDict()
            if not self._with_blocks[blocks]:
                insort(self._lengths, blocks)
            self._with_blocks[blocks] += 1
        alike[name] = _Beginning(start, _packed(tokens[start:compared]))
        self._block_of[name] = block
        if len(alike) > MAX_ALIKE:
            self.remove(next(iter(alike)))

    def remove(self, name: str) -> None:
        """Forget the beginning of `name`, if there is one."""
        block = self._block_of.pop(name, None)
        if block is None:
            return
        gone = self._alike[block].pop(name)
        if not self._alike[block]:
            del self._alike[block]
            blocks = gone.start // self._block_tokens
            self._with_blocks[blocks] -= 1
            if not self._with_blocks[blocks]:
                del self._with_blocks[blocks]
                del self._lengths[bisect_left(self._lengths, blocks)]

    def size_bytes(self, name: str) -> int:
        """Return the bytes that the beginning of `name` takes in memory. 0 if there is none."""
        block = self._block_of.get(name)
        return 0 if block is None else _BEGINNING_BYTES + sys.getsizeof(self._alike[block][name].rest)

    def find(self, request: "Request") -> str | None:
        """Return the conversation that the request continues. Of several, return the one with the longest beginning."""
        tokens = request.all_token_ids
        for block in self._known_ends(request.block_hashes):
            alike = self._alike[block]
            start = next(iter(alike.values())).start  # the same for all, because the hash covers all before it
            said = _packed(tokens[start : start + self._block_tokens])
            fitting = [(len(each.rest), name) for name, each in alike.items() if said.startswith(each.rest)]
            if fitting:
                return max(fitting)[1]
        return None

    def _known_ends(self, hashes: "Sequence[BlockHash]") -> Iterator[bytes]:
        """Yield those of the hashes at which a beginning ends, the last one first."""
        for blocks in reversed(self._lengths[: bisect_right(self._lengths, len(hashes))]):
            block = hashes[blocks - 1] if blocks else _NO_BLOCK
            if block in self._alike:
                yield block


def _packed(token_ids: Sequence[int]) -> bytes:
    return array("i", token_ids).tobytes()
