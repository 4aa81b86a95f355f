"""Small values for schemas, sensible and hostile ones."""

from typing import Any

import pytest

from app.core.smallest_value import SmallestValue


def test_what_is_required_is_there_and_fits() -> None:
    schema = {
        "type": "object",
        "required": ["name", "age", "above", "tags", "kind", "home", "maybe", "none"],
        "properties": {
            "name": {"type": "string", "minLength": 2},
            "age": {"type": "integer", "minimum": 18},
            "above": {"type": "number", "exclusiveMinimum": 1},
            "tags": {"type": "array", "minItems": 2, "items": {"type": "boolean"}},
            "kind": {"enum": ["a", "b"]},
            "home": {"$ref": "#/$defs/home"},
            "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "none": {"type": ["null", "string"]},
            "left out": {"type": "string"},
        },
        "$defs": {"home": {"type": "object", "required": ["no"], "properties": {"no": {"const": 7}}}},
    }
    assert SmallestValue(schema).find() == {
        "name": "--",
        "age": 18,
        "above": 2,
        "tags": [False, False],
        "kind": "a",
        "home": {"no": 7},
        "maybe": 0,
        "none": None,
    }


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        ({"type": "integer", "maximum": -5}, -5),
        ({"type": "integer", "exclusiveMinimum": 2.5}, 3),
        ({"type": "integer", "minimum": 5, "multipleOf": 4}, 8),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "integer", "minimum": -3, "maximum": 3}, 0),
        ({"prefixItems": [{"const": 1}], "minItems": 2, "items": {"type": "boolean"}}, [1, False]),
        ({"type": "string", "format": "date"}, "2024-01-01"),
        ({"allOf": [{"properties": {"a": {"const": 1}}}, {"required": ["b"]}]}, {"b": None, "a": 1}),
        ({"properties": {"kind": {"const": "cat"}, "name": {"type": "string"}}}, {"kind": "cat"}),
    ],
)
def test_bounds_and_parts_are_kept(shape: dict[str, Any], value: Any) -> None:
    assert SmallestValue(shape).find() == value


HOSTILE: list[Any] = [
    {"type": "string", "minLength": 10**15},
    {"type": "array", "minItems": 10**15, "items": {"type": "array", "minItems": 10**15}},
    {"$ref": "#/properties/deep"},
    {"type": "object", "required": ["a", "b"], "properties": {key: {"$ref": "#/properties/deep"} for key in "ab"}},
    {"type": "integer", "minimum": float("inf")},
    {"type": 5, "enum": [], "anyOf": {}, "$ref": 3},
    {"type": "object", "required": [1, None], "properties": []},
    {"type": "array", "minItems": 900, "items": {"const": "x" * 5000}},
    {"type": "number", "minimum": 1, "multipleOf": 5e-324},
    {"type": "integer", "exclusiveMinimum": True, "maximum": "many"},
    {"allOf": [{"$ref": "#/properties/deep"}, 5, {"allOf": [{"allOf": []}]}]},
    {"type": "object", "required": "a"},
    True,
]


@pytest.mark.parametrize("shape", HOSTILE)
def test_a_hostile_schema_costs_little(shape: Any) -> None:
    value = SmallestValue({"type": "object", "required": ["deep"], "properties": {"deep": shape}}).find()
    assert len(repr(value)) < 20_000
