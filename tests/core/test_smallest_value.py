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
    "shape",
    [
        {"type": "string", "minLength": 10**15},
        {"type": "array", "minItems": 10**15, "items": {"type": "array", "minItems": 10**15}},
        {"$ref": "#/properties/deep"},
        {"type": "object", "required": ["a", "b"], "properties": {key: {"$ref": "#/properties/deep"} for key in "ab"}},
        {"type": "integer", "minimum": float("inf")},
        {"type": 5, "enum": [], "anyOf": {}, "$ref": 3},
        {"type": "object", "required": [1, None], "properties": []},
        True,
    ],
)
def test_a_hostile_schema_costs_little(shape: Any) -> None:
    value = SmallestValue({"type": "object", "required": ["deep"], "properties": {"deep": shape}}).find()
    assert len(repr(value)) < 20_000
