"""What a request carries beside its token ids: its adapter, and the images, audio and embeddings in its prompt.

Engine thread only, except `Carried`, which is a value. Nothing here blocks.
"""

import itertools
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cwm_connector import compat
from cwm_connector.core.keys.extras import Extras, Item, common_items
from cwm_connector.sessions.extras.adapters import Adapters, AdapterUse

if TYPE_CHECKING:
    from vllm.v1.request import Request

ITEM_BYTES: Final = 240
"""Memory that an item takes."""
MAX_ITEMS: Final = 1024
"""Items of one request: they are read within a hook of vLLM, and the catalog stores each of them with a window."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64,128}")
"""vLLM's own identifiers of content. A client may choose another one, which says nothing about the content."""


@dataclass(frozen=True, slots=True)
class Carried:
    """The extras of a request, of which the adapter's digest may not be known yet."""

    adapter: AdapterUse | None = None
    items: tuple[Item, ...] = ()
    fault: str | None = None
    """Why its KV can't be named."""

    @property
    def is_pending(self) -> bool:
        """Return whether the adapter's files are still being checked."""
        return self.adapter is not None and not self.adapter.checked.done()

    @property
    def known(self) -> Extras | None:
        """Return the extras. None while they are not known, and for KV that can't be named."""
        if self.fault is not None:
            return None
        if self.adapter is None:
            return Extras(items=self.items)
        digest = self.adapter.digest
        return None if digest is None else Extras(digest, self.items)

    @property
    def size_bytes(self) -> int:
        """Return the bytes that the items take in memory."""
        return ITEM_BYTES * len(self.items)

    def common_tokens(self, other: "Carried") -> int:
        """Return how many leading tokens have equal extras. It may be more than there are tokens.

        Of an adapter whose files are being checked, the name and the path decide, as in vLLM's own hashes.
        """
        if self is other:
            return sys.maxsize
        ours, theirs = self.adapter, other.adapter
        if ours is not None and theirs is not None:
            both_known = ours.digest is not None and theirs.digest is not None
            differ = ours.place != theirs.place or (both_known and ours.digest != theirs.digest)
        else:
            differ = ours is not theirs
        return 0 if differ else common_items(self.items, other.items)


PLAIN_REQUEST: Final = Carried()
"""What a request of plain text carries."""


class RequestExtras:
    """Keeps what each request carries, from its addition to its end."""

    def __init__(self, hash_tokens: int = 16, adapters: Adapters | None = None) -> None:
        """`hash_tokens`: tokens that each of a request's block hashes covers."""
        self._hash_tokens = hash_tokens
        self.adapters = adapters or Adapters()
        self._of: dict[str, Carried] = {}

    def of(self, request: "Request") -> Carried:
        """Return what the request carries. The first call has its adapter checked."""
        if compat.is_plain(request):
            return PLAIN_REQUEST
        carried = self._of.get(request.request_id)
        if carried is None:
            carried = self._of[request.request_id] = self._read(request)
        return carried

    def finished(self, request_id: str) -> None:
        """Forget a request."""
        self._of.pop(request_id, None)

    def _read(self, request: "Request") -> Carried:
        adapter = None if request.lora_request is None else self.adapters.use(request.lora_request)
        media = list(compat.media_of(request))
        items = [Item(offset, length, f"{modality}:{name}") for offset, length, modality, name in media]
        embeds = itertools.islice(compat.embeds_of(request, self._hash_tokens), MAX_ITEMS + 1)
        items += [Item(offset, length, f"embeds:{digest}") for offset, length, digest in embeds]
        if len(items) > MAX_ITEMS:
            return Carried(adapter, (), f"the session has more than {MAX_ITEMS} images or embedded blocks; use fewer")
        chosen = next((name for *_, name in media if _DIGEST.fullmatch(name) is None), None)
        fault = None
        if chosen is not None:
            fault = (
                "an image of the session has an id that the client chose, which says nothing about its content; "
                "send images without a uuid"
            )
        return Carried(adapter, tuple(sorted(items, key=lambda item: item.offset)), fault)
