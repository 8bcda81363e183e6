"""Make docs/settings.md from the settings' own fields and docstrings. `python -m tools.reference` writes it."""

import ast
import enum
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

from cwm_connector.settings import Settings
from cwm_mcp.server.http_access import HttpSettings

_UNITS: Final = (
    ("_gb", "GiB"),
    ("_hours", "hours"),
    ("_minutes", "minutes"),
    ("_url", "URL"),
    ("keep_last", "windows"),
)
_KINDS: Final = {bool: "boolean", Path: "path", int: "tokens", str: "text"}
_INSIDE_HOME: Final = {"socket": "`CWM_HOME/engine.sock`", "disk_path": "`CWM_HOME/chunks`"}
_MORE: Final = {
    "home": "One engine at a time uses it.",
    "disk_cache_gb": "A freeze over it is refused unless Redis can take other chunks.",
    "redis_url": "See [tiers.md](tiers.md).",
    "redis_namespace": "Letters, digits, `.`, `_` and `-`, up to 64.",
    "catalog": "With redis several engines share one catalog.",
    "tier_policy": "See [tiers.md](tiers.md).",
    "auto_freeze_enabled": "See [auto-freeze.md](auto-freeze.md).",
    "auto_thaw": "See [auto-thaw.md](auto-thaw.md).",
    "load": "always goes on with the window's own KV, bit for bit. auto computes what the measured speeds say is "
    "computed sooner than loaded. That is right, but not bit-equal to the window.",
}
"""Sentences that the docstrings do not need."""
_HEAD: Final = """# Settings

Made by `python -m tools.reference` from `cwm_connector/settings.py`.

Set them as environment variables. Inside the engine, vLLM's `kv_connector_extra_config` takes the same names in lower
case without `CWM_`, and wins over the environment. A setting that can't work stops the start with one line that names
it.

Engine and clients must agree on `CWM_HOME` (or `CWM_SOCKET`). The clients need no other setting if vLLM answers on the
default address.

| name | unit | default | meaning |
|---|---|---|---|
"""
_HTTP: Final = """
## The MCP server over HTTP

These two are read by `python -m cwm_mcp --http [HOST:]PORT` only.

| name | unit | default | meaning |
|---|---|---|---|
"""
_FOOT: Final = """
A token is always needed. Without `CWM_HTTP_TOKEN` the server makes one and keeps it in `$CWM_HOME/http-token` (mode
0600). With `--no-token` it serves every user and program of this machine, on loopback only.
"""


def settings_page() -> str:
    """Return the page."""
    return f"{_HEAD}{_rows(Settings, 'CWM_')}{_HTTP}{_rows(HttpSettings, 'CWM_HTTP_')}{_FOOT}"


def _rows(settings: Any, prefix: str) -> str:
    texts, types = _docstrings(settings), get_type_hints(settings)
    rows = []
    for field, info in _fields(settings).items():
        name, unit = f"`{prefix}{field.upper()}`", _unit(field, types[field])
        rows.append(f"| {name} | {unit} | {_default(field, info.default)} | {_meaning(field, texts[field])} |\n")
    return "".join(rows)


def _fields(settings: Any) -> dict[str, Any]:
    """Return the fields of a pydantic model or of a dataclass, each with its default."""
    return getattr(settings, "model_fields", None) or settings.__dataclass_fields__


def _docstrings(settings: type) -> dict[str, str]:
    """Return the text below each field, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(body, ast.ClassDef)
    found, field = {}, ""
    for node in body.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=field)):
                pass
            case ast.Expr(value=ast.Constant(value=str(text))) if field:
                found[field] = " ".join(text.split("\n\n")[0].split())
    return found


def _unit(field: str, annotation: Any) -> str:
    for ending, unit in _UNITS:
        if field.endswith(ending):
            return unit
    kinds = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
    if issubclass(kinds[0], enum.Enum):
        return ", ".join(f"`{each.value}`" for each in kinds[0])
    return _KINDS[kinds[0]]


def _default(field: str, value: Any) -> str:
    if field in _INSIDE_HOME:
        return _INSIDE_HOME[field]
    if value in (None, ""):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(field: str, text: str) -> str:
    """Return the docstring for readers of variables. The table has the default already, if it is a value."""
    text = re.sub(r"`(\w+)`", lambda name: _variable(name[1]), text)
    text = re.sub(r" Default: \S+\.$", "", text)
    if field in _MORE:
        text += f" {_MORE[field]}"
    return text


def _variable(field: str) -> str:
    return f"`CWM_{field.upper()}`" if field in _fields(Settings) else f"`{field}`"
