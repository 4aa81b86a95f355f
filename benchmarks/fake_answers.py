"""What the fake provider says: an answer that follows from the request alone, so that anyone can predict it.

Apart from the server because it knows nothing of connections.

| the request                                                | the answer                                          |
|------------------------------------------------------------|-----------------------------------------------------|
| last user message holds `call:NAME {...}`, tools are given | calls that tool; several `call:` make several calls |
| a tool must be called, or only output tools are given      | calls it with the least JSON its schema allows      |
| `response_format` with a JSON schema                       | the least JSON that the schema allows               |
| the last messages are tool results                         | a sentence that holds the results                   |
| last user message holds `nonce:XYZ`                        | a sentence that holds `nonce:XYZ`                   |
| anything else                                              | a sentence that holds the last user message         |
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OUTPUT_TOOL = "final_result"
"""Tools whose names begin so carry the final answer (Pydantic AI's name for them)."""

_NONCE = re.compile(r"nonce:[\w-]+")
_CALL = re.compile(r"call:([\w-]+)\s*")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants called; `arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A text, or tool calls."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()


def answer_to(body: Mapping[str, Any], prompt: str) -> Answer:
    """Return the answer to a chat completion request whose last user message is `prompt`."""
    messages: Sequence[Mapping[str, Any]] = body.get("messages") or ()
    if tools := body.get("tools"):
        calls = _tool_calls(body, tools, prompt, after_user=bool(messages) and messages[-1].get("role") == "user")
        if calls:
            return Answer("", tuple(calls))
    if schema := _answer_schema(body):
        return Answer(json.dumps(least_value(schema, text=_sentence(prompt))))
    if messages and messages[-1].get("role") == "tool":
        return Answer(f"The tools said: {' | '.join(_tool_results(messages))} ({_sentence(prompt)})")
    return Answer(_sentence(prompt))


def last_user_text(body: Mapping[str, Any]) -> str:
    """Return the text of the last user message, its text parts joined, or an empty string."""
    for message in reversed(body.get("messages") or ()):
        if message.get("role") == "user":
            return _text_of(message)
    return ""


def least_value(schema: Mapping[str, Any], *, text: str = "text") -> Any:
    """Return about the smallest value that a JSON schema allows; free strings are `text`.

    Knows what Pydantic writes: `$ref`, unions, enums, bounds, lengths and common formats; not `pattern`.
    """
    return _least(schema, schema.get("$defs", {}), text)


def _sentence(prompt: str) -> str:
    found = _NONCE.search(prompt)
    if found:
        return f"This answer belongs to {found[0]} and to nobody else, says the fake provider."
    return f"The fake provider, which thinks of nothing in particular, heard: {prompt}"


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts: Sequence[Mapping[str, Any]] = content or ()
    return "\n".join(part["text"] for part in parts if part.get("type") == "text")


def _tool_results(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    results: list[str] = []
    for message in reversed(messages):
        if message.get("role") != "tool":
            break
        results.append(_text_of(message))
    return results[::-1]


def _tool_calls(
    body: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], prompt: str, *, after_user: bool
) -> list[ToolCall]:
    if after_user and (asked := list(_asked_calls(prompt))):
        return asked
    functions: dict[str, Mapping[str, Any]] = {tool["function"]["name"]: tool["function"] for tool in tools}
    output_names = [name for name in functions if name.startswith(OUTPUT_TOOL)]
    match body.get("tool_choice"):
        case "none":
            return []
        case {"function": {"name": str(name)}}:
            chosen = name
        case "required":
            chosen = output_names[0] if output_names else next(iter(functions))
        case _ if len(output_names) == len(functions):
            chosen = output_names[0]
        case _:
            return []
    schema: Mapping[str, Any] = functions[chosen].get("parameters") or {}
    return [ToolCall(chosen, json.dumps(least_value(schema, text=_sentence(prompt))))]


def _asked_calls(prompt: str) -> Iterator[ToolCall]:
    for found in _CALL.finditer(prompt):
        arguments = "{}"
        if prompt[found.end() : found.end() + 1] == "{":
            _, end = json.JSONDecoder().raw_decode(prompt, found.end())
            arguments = prompt[found.end() : end]
        yield ToolCall(found[1], arguments)


def _answer_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    response_format: Mapping[str, Any] = body.get("response_format") or {}
    match response_format.get("type"):
        case "json_schema":
            return response_format["json_schema"]["schema"]
        case "json_object":
            return {"type": "object"}
        case _:
            return None


def _least(schema: Mapping[str, Any], definitions: Mapping[str, Any], text: str) -> Any:
    if "$ref" in schema:
        return _least(definitions[schema["$ref"].rpartition("/")[2]], definitions, text)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return _least(schema[union][0], definitions, text)
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: _least(properties[name], definitions, text) for name in schema.get("required", ())}
        case "array":
            items = schema.get("prefixItems") or [schema.get("items", {})] * schema.get("minItems", 0)
            return [_least(item, definitions, text) for item in items]
        case "string":
            return _least_string(schema, text)
        case "integer" | "number":
            return _least_number(schema)
        case "boolean":
            return False
        case "null":
            return None
        case _:
            return text


def _least_string(schema: Mapping[str, Any], text: str) -> str:
    examples = {
        "date": "2000-01-01",
        "date-time": "2000-01-01T00:00:00Z",
        "time": "00:00:00Z",
        "duration": "PT1S",
        "uuid": "00000000-0000-4000-8000-000000000000",
        "email": "someone@example.com",
        "uri": "https://example.com/",
    }
    value = examples.get(schema.get("format", ""), text)
    return value.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]


def _least_number(schema: Mapping[str, Any]) -> float:
    step = schema.get("multipleOf", 1)
    low = schema.get("minimum", schema["exclusiveMinimum"] + step if "exclusiveMinimum" in schema else 0)
    high = schema.get("maximum", schema["exclusiveMaximum"] - step if "exclusiveMaximum" in schema else low)
    return low if "minimum" in schema or "exclusiveMinimum" in schema else min(low, high)
