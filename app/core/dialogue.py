"""What was said before, as a client tells it: turns of users, agents and the client's tools. Knows no wire format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.core.run import Image, ToolCall
from app.errors import FieldFault, InvalidFields

if TYPE_CHECKING:
    from pydantic_ai import ModelMessage
    from pydantic_ai.messages import ModelRequestPart, ModelResponsePart, UserPromptPart


@dataclass(frozen=True, slots=True)
class UserTurn:
    """Somebody asked."""

    text: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentTurn:
    """The agent answered, or called the client's tools, or both."""

    text: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolTurn:
    """What a tool of the client gave back."""

    call_id: str
    result: str


Turn = UserTurn | AgentTurn | ToolTurn


@dataclass(frozen=True, slots=True)
class Opening:
    """Where a run begins: what was said before, and what is asked now."""

    history: "tuple[ModelMessage, ...]"
    message: str | None
    """`None` where the run goes on with what the tools gave."""
    images: tuple[Image, ...] = ()


def opening_of(turns: Sequence[Turn], *, field: str, before: "Sequence[ModelMessage]" = ()) -> Opening:
    """The last turn as the question and all others as history, after what was said `before`.

    Raises `InvalidFields` for `field` where no model could go on from here: the agent has the last word, a tool
    answers what nobody called, or a call was not answered.
    """
    from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart

    history: list[ModelMessage] = list(before)
    waiting = _unanswered(before)
    asked: UserTurn | None = None
    for at, turn in enumerate(turns):
        match turn:
            case UserTurn() if at == len(turns) - 1:
                _all_answered(waiting, field)
                asked = turn
            case UserTurn():
                _all_answered(waiting, field)
                _add(history, [_spoken(turn)])
            case AgentTurn():
                _all_answered(waiting, field)
                parts: list[ModelResponsePart] = [TextPart(turn.text)] if turn.text else []
                parts += [ToolCallPart(call.tool, call.arguments, call.call_id) for call in turn.calls]
                waiting = {call.call_id: call.tool for call in turn.calls}
                if parts:
                    history.append(ModelResponse(parts))
            case ToolTurn():
                tool = waiting.pop(turn.call_id, None)
                if tool is None:
                    raise _refused(field, f"a tool's result answers no call of the turn before it: {turn.call_id!r}")
                _add(history, [ToolReturnPart(tool, turn.result, turn.call_id)])
    _all_answered(waiting, field)
    if asked is not None:
        return Opening(tuple(history), asked.text, asked.images)
    if not history or not isinstance(history[-1], ModelRequest):
        raise _refused(field, "must end with what a user said or what a tool gave")
    return Opening(tuple(history), None)


def _spoken(turn: UserTurn) -> "UserPromptPart":
    from pydantic_ai.messages import BinaryContent, UserPromptPart

    if not turn.images:
        return UserPromptPart(turn.text)
    pictures = [BinaryContent(image.data, media_type=image.media_type) for image in turn.images]
    return UserPromptPart([turn.text, *pictures] if turn.text else pictures)


def _add(history: "list[ModelMessage]", parts: "list[ModelRequestPart]") -> None:
    """To the request at the end, or as a new one: what is said in a row is one request."""
    from pydantic_ai.messages import ModelRequest

    last = history[-1] if history else None
    if isinstance(last, ModelRequest):
        history[-1] = ModelRequest([*last.parts, *parts], instructions=last.instructions)
    else:
        history.append(ModelRequest(parts))


def _unanswered(messages: "Sequence[ModelMessage]") -> dict[str, str]:
    from pydantic_ai.messages import ModelResponse, ToolCallPart, ToolReturnPart

    waiting: dict[str, str] = {}
    for message in messages:
        if isinstance(message, ModelResponse):
            waiting = {part.tool_call_id: part.tool_name for part in message.parts if isinstance(part, ToolCallPart)}
        else:
            for part in message.parts:
                if isinstance(part, ToolReturnPart):
                    waiting.pop(part.tool_call_id, None)
    return waiting


def _all_answered(waiting: dict[str, str], field: str) -> None:
    if waiting:
        missing = ", ".join(sorted(waiting))
        raise _refused(field, f"each call of a tool needs its result before the talk goes on; missing: {missing}")


def _refused(field: str, message: str) -> InvalidFields:
    return InvalidFields("no model could go on from these messages", errors=[FieldFault(field, message)])
