"""The built-in model that needs no provider: it makes the first start answer, and says what it is."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic_ai import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    RunContext,
    TextPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.usage import RequestUsage

from app.core.smallest_value import SmallestValue

NAME = "offline"

_OF_ANY_OBJECT = {"type", "title", "description", "additionalProperties"}
"""What a schema says that any JSON object fits."""


class OfflineModel(Model[None]):
    """Answers at once, without a network, and always the same for the same messages.

    It repeats the question and says how to configure a real model. Where an agent or a client wants structured output,
    it fills the schema with the smallest values that fit, and where a client wants any JSON, the text stands in an
    object; no other tool than that of the output is ever called.
    Token counts are words, since there is no tokenizer to ask.
    """

    @property
    def model_name(self) -> str:
        """Always `offline`."""
        return NAME

    @property
    def system(self) -> str:
        """Always `mnemosine`: the provider's place in messages and metrics."""
        return "mnemosine"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Answer `messages` with one text, or with the smallest object that fits the output schema."""
        part = _reply(messages, model_request_parameters)
        return ModelResponse(
            parts=[part],
            model_name=NAME,
            provider_name="mnemosine",
            usage=_usage(messages, part),
            finish_reason="stop",
        )

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """The same answer, word by word."""
        part = _reply(messages, model_request_parameters)
        yield _OfflineStream(
            model_request_parameters=model_request_parameters, part=part, tokens=_usage(messages, part)
        )


@dataclass
class _OfflineStream(StreamedResponse):
    part: TextPart | ToolCallPart
    tokens: RequestUsage
    asked_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        self._usage += self.tokens
        if isinstance(self.part, ToolCallPart):
            yield self._parts_manager.handle_tool_call_part(
                vendor_part_id="output",
                tool_name=self.part.tool_name,
                args=self.part.args,
                tool_call_id=self.part.tool_call_id,
            )
        else:
            gap = ""
            for word in self.part.content.split(" "):
                for event in self._parts_manager.handle_text_delta(vendor_part_id="text", content=gap + word):
                    yield event
                gap = " "
        self.finish_reason = "stop"

    async def close_stream(self) -> None:
        """Nothing is open."""

    @property
    def model_name(self) -> str:
        return NAME

    @property
    def provider_name(self) -> str:
        return "mnemosine"

    @property
    def provider_url(self) -> None:
        return None

    @property
    def timestamp(self) -> datetime:
        return self.asked_at


def _reply(messages: list[ModelMessage], wanted: ModelRequestParameters) -> TextPart | ToolCallPart:
    wanted = wanted.with_default_output_mode("tool")
    if wanted.output_tools and not wanted.allow_text_output:
        tool = wanted.output_tools[0]
        value = json.dumps(SmallestValue(tool.parameters_json_schema).find())
        return ToolCallPart(tool.name, value, tool_call_id=f"{NAME}-{tool.name}")
    asked = _last_question(messages)
    words = (
        "This is Mnemosine's built-in offline model: no language model was asked. "
        f"You said: {asked!r}. Set DEFAULT_MODEL and a provider's key to get real answers."
    )
    if wanted.output_object is None or wanted.output_mode not in {"prompted", "native"}:
        return TextPart(words)
    shape = wanted.output_object.json_schema
    return TextPart(json.dumps(SmallestValue(shape).find() if shape.keys() - _OF_ANY_OBJECT else {"response": words}))


def _last_question(messages: list[ModelMessage]) -> str:
    for message in reversed(messages):
        if isinstance(message, ModelRequest):
            for part in reversed(message.parts):
                if isinstance(part, UserPromptPart):
                    return part.content if isinstance(part.content, str) else "(content other than text)"
    return ""


def _usage(messages: list[ModelMessage], reply: TextPart | ToolCallPart) -> RequestUsage:
    told = reply.content if isinstance(reply, TextPart) else reply.args_as_json_str()
    return RequestUsage(input_tokens=len(_last_question(messages).split()), output_tokens=len(told.split()))
