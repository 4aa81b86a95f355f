"""A value for a JSON schema that a client wrote, who may have written anything."""

from typing import Any, cast

_VALUES = 1000
_CHARACTERS = 1000


class SmallestValue:
    """Looks for a small value that fits `schema`; gives `None` for what it cannot make, and beyond a thousand values.

    `not`, `pattern`, `format`, upper bounds and conditions are not looked at.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._whole = schema
        self._left = _VALUES

    def find(self) -> Any:
        """The value, of JSON's types."""
        return self._of(self._whole, 0)

    def _of(self, schema: object, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > 20 or not isinstance(schema, dict):
            return None
        shape = cast("dict[str, Any]", schema)
        if "const" in shape:
            return shape["const"]
        if isinstance(reference := shape.get("$ref"), str):
            return self._of(self._referred(reference), depth + 1)
        for key in ("enum", "anyOf", "oneOf", "allOf"):
            if isinstance(choices := shape.get(key), list) and choices:
                first = cast("object", choices[0])
                return first if key == "enum" else self._of(first, depth + 1)
        kind = shape.get("type", "object" if "properties" in shape else None)
        kinds = cast("list[object]", kind) if isinstance(kind, list) else [kind]
        return self._of_kind(kinds[0] if kinds else None, shape, depth)

    def _of_kind(self, kind: object, shape: dict[str, Any], depth: int) -> Any:
        match kind:
            case "object":
                properties, required = shape.get("properties"), shape.get("required")
                if not isinstance(properties, dict) or not isinstance(required, list):
                    return {}
                shapes, names = cast("dict[str, object]", properties), cast("list[object]", required)
                return {name: self._of(shapes.get(name), depth + 1) for name in names if isinstance(name, str)}
            case "array":
                least = min(_whole(shape.get("minItems")), max(self._left, 0))
                return [self._of(shape.get("items"), depth + 1) for _ in range(least)]
            case "string":
                return "-" * min(_whole(shape.get("minLength")), _CHARACTERS)
            case "integer" | "number":
                above = _whole(shape.get("exclusiveMinimum", -1)) + 1
                return max(_whole(shape.get("minimum")), above) if {"minimum", "exclusiveMinimum"} & shape.keys() else 0
            case "boolean":
                return False
            case _:
                return None

    def _referred(self, reference: str) -> object:
        found: object = self._whole
        for step in reference.removeprefix("#").split("/")[1:]:
            if not isinstance(found, dict):
                return None
            found = cast("dict[str, object]", found).get(step.replace("~1", "/").replace("~0", "~"))
        return found


def _whole(bound: object) -> int:
    return int(bound) if isinstance(bound, int | float) and abs(bound) < 2**53 else 0
