"""Lay out what the commands print that change something: a sentence, what to type next, and the details.

A list does without this module.
"""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import msgspec

from cwm_connector.protocol import results as m
from cwm_connector.protocol.stats import CacheStats
from cwm_connector.protocol.trash import Restored, Trashed, TrashList
from cwm_mcp.cli.fast.parts import Line, Part, fields_of, parts
from cwm_mcp.cli.sentences import Removed, Renamed, Stopped, said
from cwm_mcp.cli.table import Column, FittingTable
from cwm_mcp.cli.units import in_words, minute, size


@singledispatch
def details(result: msgspec.Struct) -> Sequence[Part] | None:
    """Return what is printed for a result without its sentence, or None for one that only Rich lays out."""
    return parts(result)


@details.register
def _(result: m.Frozen) -> Sequence[Part]:
    values: dict[str, Any] = msgspec.to_builtins(result)
    values.pop("other_heads", None)
    more = values.pop("more_heads", 0)
    others = [f"{each.head} ({each.token_count} tokens)" for each in result.other_heads or ()]
    if others:
        values["other_heads"] = ", ".join(others) + (f" and {more} more" if more else "")
    return [fields_of(values)]


@details.register
def _(result: m.Thawed) -> Sequence[Part] | None:
    return _all_fields(result) if result.reply is None else None


@details.register(m.Cloned)
@details.register(m.Collected)
@details.register(m.Deleted)
@details.register(m.Exported)
@details.register(m.Imported)
@details.register(m.AutoFreezePolicy)
@details.register(m.Tagged)
@details.register(Renamed)
@details.register(Stopped)
def _all_fields(result: msgspec.Struct) -> Sequence[Part]:
    return [fields_of(msgspec.to_builtins(result))]


@details.register(Trashed)
@details.register(Restored)
def _(result: msgspec.Struct) -> Sequence[Part]:
    return []  # the sentence says all of it


@details.register
def _(result: Removed) -> Sequence[Part]:
    kept = [each for each in result.windows if isinstance(each, Trashed)]
    until = (Column("kept until", numeric=True),) if any(each.kept_until for each in kept) else ()
    table = FittingTable((Column("window"), Column("freed", numeric=True), *until))
    for each in result.windows:
        time = minute(each.kept_until) if isinstance(each, Trashed) else None
        table.add(each.window_name, size(each.space_freed_bytes), *([time] if until else ()))
    return [table] if result.windows else []


@details.register
def _(result: TrashList) -> Sequence[Part]:
    table = FittingTable(
        (
            *(Column("window"), Column("tokens", numeric=True, rank=1), Column("size", numeric=True, rank=2)),
            *(Column("deleted", numeric=True, rank=4), Column("kept until", numeric=True, rank=3)),
        ),
    )
    for each in result.windows:
        times = (minute(each.deleted_at), minute(each.kept_until))
        table.add(each.window_name, each.token_count, size(each.size_bytes), *times)
    return [table] if result.windows else []


@details.register
def _(result: CacheStats) -> Sequence[Part]:
    values: dict[str, Any] = msgspec.to_builtins(result)
    values["transfers"] = [
        " ".join(filter(None, (each.kind, each.name, None if each.total is None else f"{each.done} of {each.total}")))
        for each in result.transfers or ()
    ]
    return [fields_of(values)]


def spoken(result: msgspec.Struct) -> list[Part]:
    """Return the sentence about a result, what to type next, and an empty line. A list or a report has none."""
    sentence = said(result)
    if sentence is None:
        return []
    following = [] if sentence.next is None else [Line(in_words(sentence.next), title="Next: ")]
    return [Line(in_words(sentence.sentence)), *following, Line()]


def answer(result: msgspec.Struct) -> list[Part] | None:
    """Return the sentence about a result and its details, or None for one that only Rich lays out."""
    laid_out = details(result)
    if laid_out is None:
        return None
    return [*spoken(result), *laid_out] if laid_out else spoken(result)[:-1]
