"""The recorded requests of real clients, in tests/recordings/, and the script that reduced them.

A file holds the requests of one client. A value that occurs more than once is stored once, in "shared", and replaced by
`{"$": INDEX}`. Use `load` to get them whole.

    python -m tests.support.recordings TRACES        reduces the traces in that folder again
"""

import collections
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent.parent / "recordings"
_MIN_SHARED: Final = 40
"""Characters of JSON from which a value is worth storing once."""
_KEPT_HEADERS: Final = re.compile(
    r"user-agent|x-app|originator|.*session.*|.*thread-id|x-codex-.*|x-openai-subagent|x-claude-code-.*"
    r"|x-openwebui-chat-id|x-openwebui-auth-type|x-client-request-id|x-request-id|x-stainless-retry-count"
)
_FOLDER: Final = re.compile(r"(?<=/)-\w+-\w+-wk-")
"""Where the recording was made, in names of folders."""
_CUT: Final = re.compile(r"…\[len=(\d+) sha256=([0-9a-f]{8})[0-9a-f]*\]")

PURPOSES: Final[dict[str, dict[str, list[int]]]] = {
    "aider": {"commit message": [7], "models": [14, 15]},
    "claude-code": {
        "title": [33, 36],
        "aside": [42],
        "compaction": [5, 6, 43, 44],
        "status": [49, 50],
        "count tokens": list(range(59, 72)),
        "subagent": [25, 27, 28, 56, 57],
        "ping": [32, 47],
    },
    "cline": {"compaction": [14], "subagent": [9]},
    "codex": {"compaction": [15, 27], "title": [21, 24, 26], "subagent": [9, 10, 12, 36, 38]},
    "litellm-proxy": {"models": [7, 8]},
    "open-webui": {"models": [0, 9], "suggestions": [2, 6, 11, 15], "title": [3, 12], "tags": [4, 13]},
    "openai-sdk-langchain-agents": {},
    "opencode": {"title": [0, 8, 27, 30, 34, 39, 42], "compaction": [24], "subagent": [16, 17, 18, 36, 37]},
    "pi": {"compaction": [11]},
    "qwen-code": {
        "memory": [1, 3, 16, 19, 29, 31, 33, 35, 36, 39, 46],
        "suggestions": [38, 41],
        "compaction": [13, 14],
        "subagent": [6, 7, 8],
    },
}
"""What the requests with these numbers were for. All others are turns. Written by hand, from what each scenario did."""


@dataclass(frozen=True)
class Recorded:
    """One request as a client sent it."""

    client: str
    number: int
    scenario: str
    """Requests of one scenario follow from one action of the user."""
    at: float
    """Seconds since the first request of the client's recording."""
    purpose: str
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: dict[str, Any] | None
    aborted: bool
    status: int | None
    """None if no answer was completed."""
    in_flight: int
    """Requests of the client that were being answered, with this one."""
    answer: dict[str, Any] | None
    """The text and the tool calls that the server answered."""

    @property
    def name(self) -> str:
        """A short name for a test's parameter."""
        return f"{self.client}-{self.number}-{self.purpose.replace(' ', '_')}"


def clients() -> list[str]:
    """Return the names of the recorded clients."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(client: str) -> list[Recorded]:
    """Return the requests of a client, in the order of their arrival."""
    file = json.loads((FOLDER / f"{client}.json").read_text())
    shared: list[Any] = []
    for value in file["shared"]:  # a value only refers to those before it
        shared.append(_expand(value, shared))
    return [
        Recorded(client, headers=[(name, value) for name, value in row.pop("headers")], **row)
        for row in _expand(file["requests"], shared)
    ]


def load_all() -> list[Recorded]:
    """Return the requests of all clients."""
    return [request for client in clients() for request in load(client)]


def _expand(value: Any, shared: list[Any]) -> Any:
    if isinstance(value, list):
        return [_expand(item, shared) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"$"}:
            return shared[value["$"]]
        return {key: _expand(item, shared) for key, item in value.items()}
    return value


def _reduce(trace: dict[str, Any]) -> dict[str, Any]:
    """Return the file for a trace."""
    purposes = {n: purpose for purpose, numbers in PURPOSES[trace["client"]].items() for n in numbers}
    requests = [
        {
            "number": row["n"],
            "scenario": row["scenario"],
            "at": row["t"],
            "purpose": purposes.get(row["n"], "turn"),
            "method": row["method"],
            "path": row["path"],
            "headers": [
                [name, _header(value)] for name, value in row["headers"] if _KEPT_HEADERS.fullmatch(name.lower())
            ],
            "body": _body(row["path"], row["body"]),
            "aborted": row["client_aborted"] is not None,
            "status": row["status"],
            "in_flight": row["in_flight"],
            "answer": row["stub_answer"] and {key: row["stub_answer"][key] for key in ("text", "calls")},
        }
        for row in trace["requests"]
    ]
    requests = _shorten(requests)
    counts: collections.Counter[str] = collections.Counter()
    _count(requests, counts)
    shared: dict[str, int] = {}
    values: list[Any] = []
    rows = [{key: _share(value, counts, shared, values) for key, value in row.items()} for row in requests]
    return {"client": trace["client"], "shared": values, "requests": rows}


def _header(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _body(path: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the body with its tools in the endpoint's form. The traces hold a name, a length and a hash of each."""
    if body is None or "tools" not in body:
        return body
    return body | {"tools": [_tool(path, tool) for tool in body["tools"]]}


def _tool(path: str, tool: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": {}}
    text = f"A tool of {tool['len']} characters, {tool['sha256'][:8]}."
    if "/messages" in path:
        return {"name": tool["name"], "description": text, "input_schema": schema}
    if "/responses" in path:
        if tool["type"] == "function":
            return {"type": "function", "name": tool["name"], "description": text, "parameters": schema}
        inner = [{"type": "function", "name": name, "parameters": schema} for name in tool.get("tools", [])]
        return {"type": tool["type"], "name": tool["name"], "description": text, "tools": inner}
    return {"type": "function", "function": {"name": tool["name"], "description": text, "parameters": schema}}


def _shorten(value: Any) -> Any:
    """Return the value with shorter marks where a text was cut. Texts that were equal stay equal."""
    if isinstance(value, list):
        return [_shorten(item) for item in value]
    if isinstance(value, dict):
        return {key: _shorten(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    return _FOLDER.sub("-home-user-", _CUT.sub(r"… [\1 characters, \2]", value))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _count(value: Any, counts: collections.Counter[str]) -> None:
    counts[_text(value)] += 1
    if counts[_text(value)] > 1:
        return  # what is inside is shared with it
    for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        _count(item, counts)


def _share(value: Any, counts: collections.Counter[str], shared: dict[str, int], values: list[Any]) -> Any:
    text = _text(value)
    if text in shared:
        return {"$": shared[text]}
    reduced = value
    if isinstance(value, list):
        reduced = [_share(item, counts, shared, values) for item in value]
    elif isinstance(value, dict):
        reduced = {key: _share(item, counts, shared, values) for key, item in value.items()}
    if len(text) < _MIN_SHARED or counts[text] < 2:
        return reduced
    shared[text] = len(values)
    values.append(reduced)
    return {"$": shared[text]}


def main(traces: Path) -> None:
    """Write the file of each client that `PURPOSES` names."""
    for client in PURPOSES:
        file = _reduce(json.loads((traces / f"{client}.json").read_text()))
        rows = ",\n".join(_text(row) for row in file["requests"])
        values = ",\n".join(_text(value) for value in file["shared"])
        text = f'{{"client": "{client}",\n"shared": [\n{values}\n],\n"requests": [\n{rows}\n]}}\n'
        (FOLDER / f"{client}.json").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
