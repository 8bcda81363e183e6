"""Results that fit into what clients show. A larger one is cut, and says how to get the rest. Pure functions."""

import json
from typing import Any, Final

MAX_BYTES: Final = 9_800
"""Of a result as compact JSON. Some clients replace a result of more than 10 kB by the beginning of its text."""
_LISTS: Final = ("windows", "sessions", "blocks", "metrics")
"""The lists that a tool gives page by page."""
_LONG_TEXT: Final = 200
_LONG_LISTS: Final = (20, 5, 1)
"""Entries that an inner list keeps. The first number of them with which the result fits is taken."""
SHORTENED: Final = "long texts and lists are cut here; the same command of `cwm` shows them whole with --json"


def fitted(content: dict[str, Any], offset: int = 0) -> dict[str, Any]:
    """Return the content of a result in at most `MAX_BYTES`, with `next` if there is more. It begins at `offset`."""
    for name in _LISTS:
        if isinstance(content.get(name), list):
            shown = _count_that_fits(content, name, content[name])
            content = _cut(content, name, content[name][:shown], shown < len(content[name]), offset + shown)
    if isinstance(content.get("text"), str):
        text, shown = _lines_that_fit(content)
        content = _cut(content, "text", text, text != content["text"], offset + shown)
    return content if _size(content) <= MAX_BYTES else _shortened_to_fit(content)


def _cut(content: dict[str, Any], name: str, shown: Any, is_cut: bool, go_on_at: int) -> dict[str, Any]:
    """Return the content with what is shown of one list, and how to go on."""
    if not is_cut and not content.get("has_more"):
        return content
    return {**content, name: shown, "has_more": True, "next": f"call again with offset={go_on_at}"}


def _count_that_fits(content: dict[str, Any], name: str, entries: list[Any]) -> int:
    """Return how many of the first entries fit, and at least one."""
    left = MAX_BYTES - _size({**content, name: [], "has_more": True, "next": "x" * 100})
    for count, entry in enumerate(entries):
        left -= _size(entry) + 1
        if left < 0:
            return max(1, count)
    return len(entries)


def _lines_that_fit(content: dict[str, Any]) -> tuple[str, int]:
    """Return the beginning of a text in Prometheus's format, up to a sample, and the number of samples in it.

    A comment describes the samples after it, so no text ends with one.
    """
    left = MAX_BYTES - _size({**content, "text": "", "has_more": True, "next": "x" * 100})
    text: str = content["text"]
    shown, end, at = 0, 0, 0
    for line in text.splitlines(keepends=True):
        left -= _size(line) - 2
        if left < 0 and shown:
            break
        at += len(line)
        if not line.startswith("#"):
            shown, end = shown + 1, at
    return text[:end], shown


def _shortened_to_fit(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with long texts and inner lists cut, for one entry that is too large alone."""
    how = "; ".join(filter(None, (content.get("next"), SHORTENED)))
    for entries in _LONG_LISTS:
        shorter = {key: _shortened(value, entries) for key, value in content.items()} | {"next": how}
        if _size(shorter) <= MAX_BYTES:
            break
    return shorter


def _shortened(value: Any, entries: int) -> Any:
    match value:
        case str() if len(value) > _LONG_TEXT:
            return f"{value[:_LONG_TEXT]}…"
        case list():
            return [_shortened(each, entries) for each in value[:entries]]
        case dict():
            return {key: _shortened(each, entries) for key, each in value.items()}
        case _:
            return value


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))
