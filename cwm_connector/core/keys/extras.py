"""What decides KV besides the token ids and the model: an adapter, and images, audio or embeddings in the prompt.

They are vLLM's extra keys, without the salt, and with content in place of names. The digest of an adapter's files
stands for the adapter, because its name says nothing about its weights. An item stands for an image, a piece of audio
or the embeddings of a block. Placeholder tokens are equal for all images, so an item is part of the chunks that it
overlaps.

A window keeps them among the fields of its passport. An engine that does not know these fields refuses the window.

Pure values for any thread. Nothing here blocks.
"""

import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

ADAPTER: Final = "adapter"
ITEMS: Final = "items"
EXTRA_FIELDS: Final = frozenset({ADAPTER, ITEMS})
"""The fields of a window's passport that no engine has. They belong to the requests."""


@dataclass(frozen=True, slots=True)
class Item:
    """Some tokens of a prompt whose meaning is not in their ids."""

    offset: int
    length: int
    identifier: str
    """A digest of the content, behind the kind of the item: `image:…`."""


@dataclass(frozen=True, slots=True)
class Extras:
    """The extras of some tokens. Equal tokens with equal extras have equal KV in one model."""

    adapter: str = ""
    """The digest of the adapter. Empty for the model itself."""
    items: tuple[Item, ...] = ()
    """In the order of their offsets."""

    @classmethod
    def of_passport(cls, fields: Mapping[str, str]) -> "Extras":
        """Return the extras among a window's fields. Raises: ValueError for items that can't be read."""
        try:
            items = json.loads(fields.get(ITEMS, "[]"))
        except RecursionError:
            raise ValueError("the items are nested too deeply") from None
        if not isinstance(items, list):
            raise ValueError("the items are not a list")
        return cls(fields.get(ADAPTER, ""), tuple(_item(each) for each in items))

    def fields(self) -> dict[str, str]:
        """Return the fields of a window's passport. None for plain text."""
        found = {ADAPTER: self.adapter} if self.adapter else {}
        if self.items:
            listed = [[item.offset, item.length, item.identifier] for item in self.items]
            found[ITEMS] = json.dumps(listed, separators=(",", ":"))
        return found

    def before(self, tokens: int) -> "Extras":
        """Return the extras of the first `tokens` tokens."""
        return Extras(self.adapter, tuple(item for item in self.items if item.offset < tokens))

    def common_tokens(self, other: "Extras") -> int:
        """Return how many leading tokens have equal extras. It may be more than there are tokens."""
        return 0 if self.adapter != other.adapter else common_items(self.items, other.items)

    def within(self, start: int, end: int) -> bytes:
        """Return what the items add to the key of the tokens [start, end). Nothing if there is none among them."""
        inside = [item for item in self.items if item.offset < end and item.offset + item.length > start]
        listed = [[item.offset - start, item.length, item.identifier] for item in inside]
        return json.dumps(listed, separators=(",", ":")).encode() if inside else b""


PLAIN: Final = Extras()
"""The extras of plain text, computed by the model itself."""


def common_items(ours: tuple[Item, ...], theirs: tuple[Item, ...]) -> int:
    """Return the offset of the first item that only one of the two has. A large number if there is none."""
    for one, other in itertools.zip_longest(ours, theirs):
        if one != other:
            return min(item.offset for item in (one, other) if item is not None)
    return sys.maxsize


def _item(listed: Any) -> Item:
    match listed:
        case [int(offset), int(length), str(identifier)] if offset >= 0 and length > 0:
            return Item(offset, length, identifier)
    raise ValueError("an item is not an offset, a length and an identifier")
