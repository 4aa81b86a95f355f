"""A stored message as a person reads it: who spoke, the text, the tools. The shape of the conversation routes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

from pydantic_core import from_json, to_json

from app.db.conversations import EntryRow

Role = Literal["system", "user", "assistant", "tool"]
Part = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attachment:
    """Something that is no text: a picture, a document. Its bytes are in the export."""

    kind: str
    media_type: str | None
    url: str | None


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A call to a tool; `arguments` is JSON text."""

    id: str
    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave, as text, or what it complained about."""

    id: str
    tool: str
    content: str


@dataclass(slots=True)
class Said:
    """One message. What the model only thought is not shown."""

    id: str
    role: Role
    created_at: datetime
    text: str = ""
    attachments: list[Attachment] = field(default_factory=list[Attachment])
    tool_calls: list[ToolUse] = field(default_factory=list[ToolUse])
    tool_results: list[ToolResult] = field(default_factory=list[ToolResult])
    model: str | None = None
    """Of an answer: the model that gave it."""


def transcript(entries: Sequence[EntryRow]) -> list[Said]:
    """What was said, oldest first. Read from the JSON alone, so that a part of a later Pydantic AI does no harm."""
    return [_said(entry) for entry in entries]


def _said(entry: EntryRow) -> Said:
    message: dict[str, Any] = from_json(entry.message)
    parts: list[Part] = message.get("parts", [])
    if message.get("kind") == "response":
        said = Said(entry.id, "assistant", entry.created_at, model=message.get("model_name"))
    else:
        said = Said(entry.id, _role_of(parts), entry.created_at)
    texts: list[str] = []
    for part in parts:
        match part.get("part_kind"):
            case "user-prompt":
                texts += _spoken(part["content"], said)
            case "text":
                texts.append(part["content"])
            case "system-prompt" if said.role == "system":
                texts.append(part["content"])
            case "tool-call":
                said.tool_calls.append(ToolUse(part["tool_call_id"], part["tool_name"], _as_text(part["args"] or "{}")))
            case "tool-return":
                said.tool_results.append(_result(part))
            case "retry-prompt" if part.get("tool_name"):
                said.tool_results.append(_result(part))
            case "file":
                said.attachments.append(_attachment(part["content"]))
            case _:
                pass
    said.text = "\n\n".join(texts) if said.role != "assistant" else "".join(texts)
    return said


def _role_of(parts: Sequence[Part]) -> Role:
    kinds = {part.get("part_kind") for part in parts}
    if "user-prompt" in kinds:
        return "user"
    return "tool" if kinds & {"tool-return", "retry-prompt"} else "system"


def _spoken(content: str | list[Any], said: Said) -> list[str]:
    """The texts of a prompt; what else is in it becomes attachments."""
    texts: list[str] = []
    for item in [content] if isinstance(content, str) else content:
        if isinstance(item, str):
            texts.append(item)
            continue
        item = cast("Part", item)
        if isinstance(item.get("content"), str):
            texts.append(item["content"])
        elif item.get("kind") != "cache-point":
            said.attachments.append(_attachment(item))
    return texts


def _attachment(item: Part) -> Attachment:
    return Attachment(item.get("kind", "file"), item.get("media_type"), item.get("url"))


def _result(part: Part) -> ToolResult:
    return ToolResult(part["tool_call_id"], part["tool_name"], _as_text(part["content"]))


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else to_json(value).decode()
