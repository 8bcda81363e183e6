"""JSON schemas as short as they can be: a model reads the whole set at the start of every conversation."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema


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


class _CompactOutput(_Compact):
    """`"type": ["integer", "null"]` where pydantic writes two alternatives."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        if isinstance(inner.get("type"), str) and "enum" not in inner:
            return {**inner, "type": [inner["type"], "null"]}
        return {"anyOf": [inner, {"type": "null"}]}


def input_schema(arguments: type[BaseModel]) -> dict[str, Any]:
    return _inlined(arguments.model_json_schema(schema_generator=_CompactInput))


def output_schema(result: type[BaseModel]) -> dict[str, Any]:
    return _inlined(result.model_json_schema(schema_generator=_CompactOutput))


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
