"""Write values as a person reads them, and safely for a terminal."""

from datetime import datetime
from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: int | None) -> str | None:
    """Return a number of bytes in the largest binary unit in which it is at least one."""
    if count is None:
        return None
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def counted(count: int, what: str) -> str:
    """Return a number with its noun, for instance 1 window or 2 windows."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def minute(time: str | None) -> str | None:
    """Return an ISO 8601 time in the reader's own time zone without seconds, for instance 2026-01-23 09:30."""
    return None if time is None else f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M}"


def in_words(value: object) -> str:
    """Return a value as one line of plain text. An unknown or empty one is a dash."""
    if value is None or value in ("", [], {}):
        return "-"
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def printable(text: str) -> str:
    """Return the text with a space in place of every character that could control a terminal."""
    return text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)
