"""JSON schemas as short as they can be: a model reads the whole set at the start of every conversation.

msgspec makes them from the structs of cwm_connector/protocol. Titles, docstrings and empty defaults are left out.
"""

from typing import Any, Final

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

_SILENT: Final = ("title", "description")
_IMPLIED: Final[tuple[tuple[str, object], ...]] = (
    ("default", None),
    ("default", ""),
    ("default", []),
    ("additionalProperties", False),
    ("required", []),
)
_NULL: Final = {"type": "null"}


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
        short = {key: value for key, value in node.items() if key not in _SILENT and (key, value) not in _IMPLIED}
        if "enum" in short:
            short["type"] = "string"
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


class _Compact(GenerateJsonSchema):
    """Drops what says nothing to a reader: titles, our own docstrings, null defaults."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _without(super().model_schema(schema), "title", "description", "additionalProperties")

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        rendered = super().default_schema(schema)
        return _without(rendered, "default") if rendered.get("default") in (None, "", []) else rendered


class _CompactInput(_Compact):
    """An optional argument is one that can be left out; nobody has to be told that null does the same."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def input_schema(arguments: type[BaseModel]) -> dict[str, Any]:
    return _inlined(arguments.model_json_schema(schema_generator=_CompactInput))


def _without(schema: JsonSchemaValue, *keywords: str) -> JsonSchemaValue:
    return {key: value for key, value in schema.items() if key not in keywords}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with every definition in the place of its reference; ours are used once and never nest themselves."""
    definitions: dict[str, Any] = schema.pop("$defs", {})

    def expand(node: Any) -> Any:
        if isinstance(node, list):
            return [expand(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return expand(definitions[node["$ref"].removeprefix("#/$defs/")])
        return {key: expand(value) for key, value in node.items()}

    expanded: dict[str, Any] = expand(schema)
    return expanded
