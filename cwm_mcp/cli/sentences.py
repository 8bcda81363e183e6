"""Say in a sentence what a command has done, what to type next, and what `--quiet` prints."""

from functools import singledispatch

import msgspec

from cwm_connector.protocol import results as m
from cwm_connector.protocol.trash import Restored, Trashed, TrashList
from cwm_mcp.cli.units import counted, minute, size


class Said(msgspec.Struct, frozen=True):
    """An answer for a person."""

    sentence: str
    next: str | None = None
    """A command, or something else to do next."""


class Renamed(msgspec.Struct, frozen=True):
    """A window that `cwm mv` has renamed."""

    old_name: str
    new_name: str


class Removed(msgspec.Struct, frozen=True):
    """Windows that one `cwm rm` has deleted."""

    windows: list[m.Deleted | Trashed]
    space_freed_bytes: int


class AllWarmed(msgspec.Struct, frozen=True):
    """Windows that one `cwm warm` has read."""

    windows: list[m.Warmed]


class Stopped(msgspec.Struct, frozen=True):
    """An engine that `cwm stop` has ended."""

    pid: int
    seconds: float


@singledispatch
def said(result: msgspec.Struct) -> Said | None:
    """Return the answer as a sentence, or None for a result that is a list or a report."""
    return None


@said.register
def _(result: m.Frozen) -> Said:
    new = "all of it stored already" if not result.new_bytes else f"{size(result.new_bytes)} of it new"
    stored = f"{size(result.total_size_bytes)}, {new}"
    sentence = f"Froze {result.session_id} as {result.window_name}: {result.token_count} tokens, {stored}."
    others = len(result.other_heads or ()) + result.more_heads
    if others:
        sentence += f" It holds head {result.head}; the session has {others} more."
    return Said(sentence, f"cwm thaw {result.window_name}")


@said.register
def _(result: m.Thawed) -> Said:
    loads = f"{result.restorable_tokens} of {result.token_count} tokens load instead of being computed"
    sentence = f"Thawed {result.window_name} into session {result.session_id}: {loads}."
    if result.reply is not None:
        return Said(sentence)
    return Said(
        sentence,
        f"send the conversation with the header X-Session-ID: {result.session_id}, "
        f'or with "cache_salt": "{result.cache_salt}" in the body',
    )


@said.register
def _(result: m.Cloned) -> Said:
    chunks = "their one chunk" if result.shared_blocks == 1 else f"all {result.shared_blocks} chunks"
    return Said(
        f"Cloned {result.source_window} as {result.target_window}. They share {chunks}.",
        f"cwm thaw {result.target_window} --session NEW-SESSION",
    )


@said.register
def _(result: m.Deleted | Trashed) -> Said:
    if isinstance(result, Trashed) and result.kept_until is not None:
        until = minute(result.kept_until)
        return Said(f"Deleted {result.window_name}. It can be brought back until {until}.", "cwm undo")
    return Said(f"Deleted {result.window_name} for good and freed {size(result.space_freed_bytes)}.")


@said.register
def _(result: Removed) -> Said:
    if not result.windows:
        return Said("No window matches, so nothing was deleted.")
    until = [each.kept_until for each in result.windows if isinstance(each, Trashed) and each.kept_until]
    gone, count = len(result.windows) - len(until), len(result.windows)
    freed = f" and freed {size(result.space_freed_bytes)}"
    if not until:
        return Said(f"Deleted {counted(count, 'window')} for good{freed}.")
    part = f", {gone} of them for good{freed}" if gone else ""
    others = "The others" if gone else "It" if count == 1 else "They"
    return Said(
        f"Deleted {counted(count, 'window')}{part}. {others} can be brought back until {minute(min(until))}.",
        "cwm undo",
    )


@said.register
def _(result: Restored) -> Said:
    names = result.window_names
    some = names[0] if len(names) == 1 else f"{counted(len(names), 'window')}: {', '.join(names)}"
    return Said(f"Brought back {some}.", f"cwm thaw {names[0]}")


@said.register
def _(result: TrashList) -> Said:
    if not result.windows:
        return Said("The trash is empty.")
    return Said(f"{counted(len(result.windows), 'window')} in the trash.", "cwm undo, or cwm undo WINDOW")


@said.register
def _(result: m.Tagged) -> Said:
    tags = f"the tags {', '.join(result.tags)}" if result.tags else "no tags"
    return Said(f"{result.window_name} has {tags}.")


@said.register
def _(result: Renamed) -> Said:
    return Said(f"Renamed {result.old_name} to {result.new_name}.")


@said.register
def _(result: m.Exported) -> Said:
    sentence = f"Exported {result.window_name} to {result.path}: {result.token_count} tokens, {size(result.bytes)}."
    return Said(sentence, f"cwm import {result.path}, where an engine serves the same weights")


@said.register
def _(result: m.Imported) -> Said:
    stored = f"{result.token_count} tokens, {size(result.new_bytes)} new"
    return Said(
        f"Imported {result.window_name} from {result.path}: {stored}. It was {result.exported_as} there.",
        f"cwm thaw {result.window_name}",
    )


@said.register
def _(result: m.Collected) -> Said:
    freed = size(result.space_freed_bytes + result.catalog_bytes_freed)
    return Said(f"Removed {counted(result.chunks_deleted, 'chunk')} that no window used and freed {freed}.")


@said.register
def _(result: AllWarmed) -> Said:
    ready = sum(each.ready_tokens for each in result.windows)
    return Said(
        f"{ready} tokens of {counted(len(result.windows), 'window')} are in memory.",
        f"cwm thaw {result.windows[0].window_name}",
    )


@said.register
def _(result: Stopped) -> Said:
    return Said(f"The engine (process {result.pid}) has ended after {result.seconds:.1f} s.")


@singledispatch
def essence(result: msgspec.Struct) -> list[str]:
    """Return the lines of `--quiet`: names, and nothing else."""
    return []


@essence.register
def _(result: m.Frozen) -> list[str]:
    return [result.window_name]


@essence.register
def _(result: m.Thawed) -> list[str]:
    return [result.cache_salt]


@essence.register
def _(result: m.Cloned) -> list[str]:
    return [result.target_window]


@essence.register
def _(result: Renamed) -> list[str]:
    return [result.new_name]


@essence.register
def _(result: m.Deleted) -> list[str]:
    return [result.window_name]


@essence.register
def _(result: Trashed) -> list[str]:
    return [result.window_name]


@essence.register
def _(result: Restored) -> list[str]:
    return result.window_names


@essence.register
def _(result: TrashList) -> list[str]:
    return [each.window_name for each in result.windows]


@essence.register
def _(result: Removed) -> list[str]:
    return [each.window_name for each in result.windows]


@essence.register
def _(result: m.Exported) -> list[str]:
    return [result.path]


@essence.register
def _(result: m.Imported) -> list[str]:
    return [result.window_name]


@essence.register
def _(result: AllWarmed) -> list[str]:
    return [each.window_name for each in result.windows]


@essence.register
def _(result: Stopped) -> list[str]:
    return [str(result.pid)]


@essence.register
def _(result: m.Tagged) -> list[str]:
    return [result.window_name]


@essence.register
def _(result: m.WindowList) -> list[str]:
    return [each.name for each in result.windows]


@essence.register
def _(result: m.SessionList) -> list[str]:
    return [each.session_id for each in result.sessions]
