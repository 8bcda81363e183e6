"""Results that fit into what clients show. A larger one is cut, and says how to get the rest. Pure functions."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

MAX_BYTES: Final = 9_800
"""Of a result as compact JSON. Some clients replace a result of more than 10 kB by the beginning of its text."""
_LONG_TEXT: Final = 200
_LONG_LIST: Final = 20
_HOW_TO_GO_ON: Final[Mapping[str, Callable[[int, int], str]]] = {
    "windows": lambda start, shown: f"call again with offset={start + shown}",
    "sessions": lambda start, shown: f"call again with offset={start + shown}",
    "blocks": lambda start, shown: f"these are the first {shown}; `cwm show WINDOW --blocks` shows all",
    "metrics": lambda start, shown: "give a longer or another prefix for the rest",
}
"""The lists of results, and the sentence for one that was cut. It has the offset and the number of entries shown."""


def fitted(content: dict[str, Any], offset: int = 0) -> dict[str, Any]:
    """Return the content of a result in at most `MAX_BYTES`, with `next` if there is more. It begins at `offset`."""
    for name, how in _HOW_TO_GO_ON.items():
        entries = content.get(name)
        if not isinstance(entries, list):
            continue
        shown = _count_that_fits(content, name, entries)
        if shown < len(entries):
            content = {**content, name: entries[:shown]}
            if "has_more" in content:
                content["has_more"] = True
        if shown < len(entries) or content.get("has_more"):
            content["next"] = how(offset, shown)
    if isinstance(content.get("text"), str) and _size(content) > MAX_BYTES:
        content = {**content, "text": _first_lines(content["text"]), "next": _HOW_TO_GO_ON["metrics"](0, 0)}
    return content if _size(content) <= MAX_BYTES else _shortened(content)


def _count_that_fits(content: dict[str, Any], name: str, entries: list[Any]) -> int:
    """Return how many of the first entries fit, and at least one."""
    left = MAX_BYTES - _size({**content, name: [], "next": "x" * 100})
    for count, entry in enumerate(entries):
        left -= _size(entry) + 1
        if left < 0:
            return max(1, count)
    return len(entries)


def _first_lines(text: str) -> str:
    cut = text.encode()[: MAX_BYTES * 2 // 3].decode(errors="ignore")
    return cut[: cut.rfind("\n") + 1] or cut


def _shortened(value: Any) -> Any:
    """Return the value with long texts and lists cut, for one entry that is too large alone."""
    match value:
        case str() if len(value) > _LONG_TEXT:
            return f"{value[:_LONG_TEXT]}…"
        case list():
            return [_shortened(each) for each in value[:_LONG_LIST]]
        case dict():
            return {key: _shortened(each) for key, each in value.items()}
        case _:
            return value


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))
