"""What a child tells its parent: one small JSON line for each event, written at once, so that a kill loses none.

A line shorter than PIPE_BUF is written whole or not at all, and what was written can be read after the writer's death.
"""

import os
from select import PIPE_BUF
from typing import Final

import msgspec

from tests.torture.texts import Text


class Window(msgspec.Struct, frozen=True):
    """A window as it was asked for, and as far as it is known what its acknowledgement said."""

    name: str
    session_id: str
    text: Text
    description: str
    tags: tuple[str, ...]
    parent: str | None = None
    size_bytes: int | None = None
    """None: never acknowledged, so neither this nor `parent` is known."""


class Started(msgspec.Struct, frozen=True, tag="started"):
    """Recovery is over."""


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    """A listed window. `ids` is the fingerprint of its token ids, `restored` how many of its tokens a thaw loaded."""

    name: str
    session_id: str
    ids: str
    tokens: int
    description: str
    tags: tuple[str, ...]
    parent: str | None
    size_bytes: int
    restored: int
    fault: str | None
    """Why less was loaded than the window holds, or what was wrong with what was loaded."""
    wrong_bytes: bool
    """Loaded pages hold other bytes than computing would have left there."""


class Damage(msgspec.Struct, frozen=True, tag="damage"):
    """Beyond a single window. `leak`: a tier and the catalog disagree; else the catalog contradicts itself."""

    leak: bool
    text: str


class Looked(msgspec.Struct, frozen=True, tag="looked"):
    """Everything there was has been told."""


class Asked(msgspec.Struct, frozen=True, tag="asked"):
    """An operation begins. `name`: the window that it changes, if it changes one; `after`: into what, None: it goes."""

    id: int
    act: str
    name: str | None = None
    after: Window | None = None


class Step(msgspec.Struct, frozen=True, tag="step"):
    id: int
    text: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The operation was acknowledged; `size_bytes` and `parent` for a freeze."""

    id: int
    size_bytes: int | None = None
    parent: str | None = None


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    id: int
    code: int
    text: str


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The child closes the store in order."""


class Broke(msgspec.Struct, frozen=True, tag="broke"):
    """The child itself failed."""

    text: str


Event = Started | Seen | Damage | Looked | Asked | Step | Done | Refused | Ended | Broke

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Event)


class Teller:
    """The child's end of the pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, event: Event) -> None:
        line = _encoder.encode(event) + b"\n"
        if len(line) > PIPE_BUF:
            raise ValueError(f"an event of {len(line)} bytes could be cut in two")
        os.write(self._descriptor, line)


def parse(line: bytes) -> Event:
    return _decoder.decode(line)
