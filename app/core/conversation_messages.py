"""What was said, between Pydantic AI's messages and the JSON that conversations keep."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    UserPromptPart,
)
from pydantic_ai.usage import RequestUsage
from pydantic_core import from_json, to_json

from app.core.run import Answer, Question


class StoredHistory(Sequence[ModelMessage]):
    """Messages as they were stored; made into objects when somebody looks at one, which a cache hit never does."""

    def __init__(self, written: Sequence[str]) -> None:
        self._written = written
        self._read: list[ModelMessage] | None = None

    def plain(self) -> list[dict[str, Any]]:
        """The messages as parsed JSON: the same as dumping the objects, at an eighth of the time."""
        return from_json(self._joined())

    def __len__(self) -> int:
        return len(self._written)

    def __iter__(self) -> Iterator[ModelMessage]:
        return iter(self._messages())

    @overload
    def __getitem__(self, index: int) -> ModelMessage: ...
    @overload
    def __getitem__(self, index: slice) -> list[ModelMessage]: ...
    def __getitem__(self, index: int | slice) -> ModelMessage | list[ModelMessage]:
        return self._messages()[index]

    def _messages(self) -> list[ModelMessage]:
        if self._read is None:
            self._read = ModelMessagesTypeAdapter.validate_json(self._joined())
        return self._read

    def _joined(self) -> str:
        return "[" + ",".join(self._written) + "]"


def messages_of(question: Question, answer: Answer) -> list[str]:
    """What one turn adds to a conversation: the question and its answer, each message as JSON."""
    if answer.messages is not None:
        return [to_json(message).decode() for message in from_json(answer.messages)]
    text = answer.output if isinstance(answer.output, str) else to_json(answer.output).decode()
    usage = RequestUsage(input_tokens=answer.usage.input_tokens, output_tokens=answer.usage.output_tokens)
    said: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart(question.message or "")], run_id=answer.id),
        ModelResponse(parts=[TextPart(text)], usage=usage, model_name=answer.model, run_id=answer.id),
    ]
    return [ModelMessagesTypeAdapter.dump_json([message])[1:-1].decode() for message in said]
