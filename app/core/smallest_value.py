"""A value for a JSON schema that a client or an operator wrote, who may have written anything."""

import math
from collections.abc import Mapping
from typing import Any, cast

_VALUES = 1000
_CHARACTERS = 1000
_DEPTH = 20
_FINEST_STEP = 1e-9
"""Of `multipleOf`; a finer one is met by every number for all that anybody can tell."""
_FORMATS = {
    "date": "2024-01-01",
    "date-time": "2024-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "nobody@example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-0000-0000-000000000000",
}


class SmallestValue:
    """Looks for a small value that fits `schema`; gives `None` for what it cannot make, and beyond a thousand values.

    `not`, `pattern`, `uniqueItems` and conditions are not looked at; of several shapes the first is made, unless they
    all have to fit.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._whole = schema
        self._left = _VALUES

    def find(self) -> Any:
        """The value, of JSON's types."""
        return self._of(self._whole, 0)

    def _of(self, schema: object, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _DEPTH or not isinstance(schema, dict):
            return None
        shape = cast("dict[str, Any]", schema)
        if "const" in shape:
            return self._counted(shape["const"])
        if isinstance(reference := shape.get("$ref"), str):
            return self._of(self._referred(reference), depth + 1)
        for key in ("enum", "anyOf", "oneOf"):
            if isinstance(choices := shape.get(key), list) and choices:
                first = cast("object", choices[0])
                return self._counted(first) if key == "enum" else self._of(first, depth + 1)
        if isinstance(parts := shape.get("allOf"), list) and parts:
            return self._of(self._all_of(shape, cast("list[object]", parts)), depth + 1)
        kind = shape.get("type", _kind_of(shape))
        kinds = cast("list[object]", kind) if isinstance(kind, list) else [kind]
        return self._of_kind(kinds[0] if kinds else None, shape, depth)

    def _of_kind(self, kind: object, shape: dict[str, Any], depth: int) -> Any:
        match kind:
            case "object":
                properties = shape.get("properties")
                shapes = cast("dict[str, object]", properties) if isinstance(properties, dict) else {}
                return {name: self._of(shapes.get(name), depth + 1) for name in self._names(shape, shapes)}
            case "array":
                first = shape.get("prefixItems")
                shapes = cast("list[object]", first) if isinstance(first, list) else []
                least = min(_whole(shape.get("minItems")), max(self._left, 0))
                rest = shape.get("items")
                return [self._of(shapes[place] if place < len(shapes) else rest, depth + 1) for place in range(least)]
            case "string":
                if isinstance(form := shape.get("format"), str) and form in _FORMATS:
                    return _FORMATS[form]
                return self._counted("-" * min(_whole(shape.get("minLength")), _CHARACTERS))
            case "integer" | "number":
                return _number(shape, whole=kind == "integer")
            case "boolean":
                return False
            case _:
                return None

    def _names(self, shape: dict[str, Any], shapes: dict[str, object]) -> list[str]:
        """Which properties to make: those that are required, and constant ones, by which unions are told apart."""
        required = shape.get("required")
        wanted = cast("list[object]", required) if isinstance(required, list) else []
        names = (name for name in wanted if isinstance(name, str))
        constant = (name for name, value in shapes.items() if isinstance(value, dict) and "const" in value)
        return list(dict.fromkeys([*names, *constant]))

    def _all_of(self, shape: dict[str, Any], parts: list[object]) -> dict[str, Any]:
        """One shape of those that all have to fit."""
        whole = {key: value for key, value in shape.items() if key != "allOf"}
        properties: dict[str, object] = {}
        required: list[object] = []
        for part in [shape, *parts]:
            if isinstance(part, dict) and isinstance(reference := cast("dict[str, Any]", part).get("$ref"), str):
                part = self._referred(reference)
            if not isinstance(part, dict):
                continue
            one = cast("dict[str, Any]", part)
            if one is not shape:
                whole |= one
            if isinstance(named := one.get("properties"), dict):
                properties |= cast("dict[str, object]", named)
            if isinstance(wanted := one.get("required"), list):
                required += cast("list[object]", wanted)
            self._left -= (len(one) + len(properties) + len(required)) // 10
        if properties:
            whole["properties"] = properties
        if required:
            whole["required"] = required
        return whole

    def _counted(self, value: object) -> Any:
        """A value that may be long, as long as it is not too much with what was made so far."""
        self._left -= _size(value) // 10
        return value if self._left >= 0 else None

    def _referred(self, reference: str) -> object:
        found: object = self._whole
        for step in reference.removeprefix("#").split("/")[1:]:
            if not isinstance(found, dict):
                return None
            found = cast("dict[str, object]", found).get(step.replace("~1", "/").replace("~0", "~"))
        return found


def _kind_of(shape: dict[str, Any]) -> str | None:
    """The type of a shape that does not name it."""
    if shape.keys() & {"properties", "required"}:
        return "object"
    return "array" if shape.keys() & {"prefixItems", "minItems"} else None


def _number(shape: dict[str, Any], *, whole: bool) -> int | float:
    """The number next to nought, of a few that may be in the bounds."""
    low, above = _bound(shape.get("minimum"), -math.inf), _bound(shape.get("exclusiveMinimum"), -math.inf)
    high, below = _bound(shape.get("maximum"), math.inf), _bound(shape.get("exclusiveMaximum"), math.inf)
    step = _bound(shape.get("multipleOf"), 0)
    bounds = [bound for bound in (low, above, high, below) if math.isfinite(bound)]
    candidates = [0, *(bound + more for bound in bounds for more in (0, 1, -1))]
    if len(bounds) > 1:
        candidates.append((max(low, above) + min(high, below)) / 2)
    if step > _FINEST_STEP:
        candidates = [turn(one / step) * step for one in candidates for turn in (math.ceil, math.floor)]
    if whole:
        candidates = [turn(one) for one in candidates for turn in (math.ceil, math.floor)]
    fit = [one for one in candidates if low <= one <= high and above < one < below]
    return min(fit or candidates, key=abs)


def _bound(value: object, without: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
    return cast("float", value) if is_number else without


def _whole(bound: object) -> int:
    return int(_bound(bound, 0))


def _size(value: object) -> int:
    """About how many characters a value takes."""
    match value:
        case str():
            return len(value)
        case dict():
            return sum(len(str(name)) + _size(one) for name, one in cast("dict[object, object]", value).items())
        case list():
            return sum(_size(one) for one in cast("list[object]", value))
        case _:
            return 1
