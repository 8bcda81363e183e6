"""The calls that move KV and are under way: thaws, exports, imports and checks, with how far they have come.

Freezes are in freeze/under_way.py, because they can outlive their call. Control thread.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cwm_connector.catalog.results import iso
from cwm_connector.control.calls import ProgressSink
from cwm_connector.core.types import Micros, now_micros
from cwm_connector.protocol.calls import Args, ExportArgs, ImportArgs, ProveArgs, ThawArgs, VerifyArgs
from cwm_connector.protocol.stats import Transfer

_KINDS: Final[dict[type, str]] = {
    ThawArgs: "thaw",
    ProveArgs: "prove",
    ExportArgs: "export",
    ImportArgs: "import",
    VerifyArgs: "verify",
}


@dataclass(slots=True)
class _Call:
    kind: str
    name: str | None
    started_at: Micros
    done: int = 0
    total: int | None = None


class Transfers:
    """One for each engine."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._under_way: dict[int, _Call] = {}

    @contextmanager
    def watch(self, args: Args, progress: ProgressSink) -> Iterator[ProgressSink]:
        """Take down how far a call comes, until it ends. Calls that move no KV pass unseen."""
        kind = _KINDS.get(type(args))
        if kind is None:
            yield progress
            return
        call = _Call(kind, getattr(args, "window_name", None), now_micros())

        def report(done: int, total: int, text: str) -> None:
            call.done, call.total = done, total or None
            progress(done, total, text)

        number = next(self._numbers)
        self._under_way[number] = call
        try:
            yield report
        finally:
            del self._under_way[number]

    def listed(self) -> list[Transfer]:
        """Return those that are under way, the oldest first."""
        return [
            Transfer(kind=call.kind, name=call.name, done=call.done, total=call.total, started_at=iso(call.started_at))
            for call in self._under_way.values()
        ]
