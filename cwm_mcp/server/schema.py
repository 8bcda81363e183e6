"""JSON schemas as short as they can be: a model reads the whole set at the start of every conversation.

msgspec makes them from the structs of cwm_connector/protocol. Titles, docstrings and empty defaults are left out.
"""

from typing import Any, Final

import msgspec

from cwm_connector.protocol.calls import ORDER

_SILENT: Final = ("title", "description")
_IMPLIED: Final[tuple[tuple[str, object], ...]] = (
    ("default", None),
    ("default", ""),
    ("default", []),
    ("default", 0),
    ("required", []),
)
_NULL: Final = {"type": "null"}


def input_schema(arguments: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the schema of a tool's arguments.

    An argument with a default can be left out, which says the same as null: no null is mentioned.
    """
    return _Compactor(arguments, nullable=False).schema


def output_schema(result: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the schema of a tool's structured content."""
    return _Compactor(result, nullable=True).schema


class _Compactor:
    """Shortens one schema, and puts each definition where it is used. No struct contains itself."""

    def __init__(self, kind: type[msgspec.Struct], *, nullable: bool) -> None:
        self._nullable = nullable
        (root,), self._definitions = msgspec.json.schema_components((kind,), ref_template="{name}")
        self.schema = self._compact(root)

    def _compact(self, node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            return self._compact(self._definitions[node["$ref"]])
        if "anyOf" in node:
            return self._optional(node)
        short = {key: value for key, value in node.items() if key not in _SILENT and not _is_implied(key, value)}
        if "enum" in short:
            short |= {"enum": short.pop(ORDER, short["enum"]), "type": "string"}
        if "properties" in short:
            short["properties"] = {name: self._compact(value) for name, value in short["properties"].items()}
        for key in ("items", "additionalProperties"):
            if key in short:
                short[key] = self._compact(short[key])
        return short

    def _optional(self, node: dict[str, Any]) -> dict[str, Any]:
        """Shorten `X | None`, the only union in our structs."""
        (inner,) = (self._compact(each) for each in node["anyOf"] if each != _NULL)
        if not self._nullable:
            return inner
        if isinstance(inner.get("type"), str) and "enum" not in inner:
            return {**inner, "type": [inner["type"], "null"]}
        return {"anyOf": [inner, _NULL]}


def _is_implied(key: str, value: object) -> bool:
    """Return whether a model takes this for granted. A default of `False` is not, although it equals 0."""
    return key == "additionalProperties" if value is False else (key, value) in _IMPLIED
