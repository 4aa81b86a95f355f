"""The built-in model that needs no provider: it makes the first start answer, and says what it is."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic_ai import ModelMessage, ModelRequest, ModelResponse, ModelSettings, RunContext, TextPart, UserPromptPart
from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RequestUsage

from app.core.smallest_value import SmallestValue

NAME = "offline"


class OfflineModel(Model[None]):
    """Answers at once, without a network, and always the same for the same messages.

    It repeats the question and says how to configure a real model. Where an agent wants structured output, it
    fills the schema with the smallest values that fit, and where a client wants any JSON, the text stands in an object;
    tools are never called.
    Token counts are words, since there is no tokenizer to ask.
    """

    def __init__(self) -> None:
        super().__init__()
        self._structured = TestModel(call_tools=[], model_name=NAME)

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
        if not model_request_parameters.allow_text_output:
            return await self._structured.request(messages, model_settings, model_request_parameters)
        text = _reply(messages, model_request_parameters)
        return ModelResponse(
            parts=[TextPart(text)],
            model_name=NAME,
            provider_name="mnemosine",
            usage=_usage(messages, text),
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
        if not model_request_parameters.allow_text_output:
            async with self._structured.request_stream(
                messages, model_settings, model_request_parameters, run_context
            ) as stream:
                yield stream
            return
        text = _reply(messages, model_request_parameters)
        yield _OfflineStream(
            model_request_parameters=model_request_parameters, text=text, tokens=_usage(messages, text)
        )


@dataclass
class _OfflineStream(StreamedResponse):
    text: str
    tokens: RequestUsage
    asked_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        self._usage += self.tokens
        gap = ""
        for word in self.text.split(" "):
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


def _reply(messages: list[ModelMessage], wanted: ModelRequestParameters) -> str:
    asked = _last_question(messages)
    words = (
        "This is Mnemosine's built-in offline model: no language model was asked. "
        f"You said: {asked!r}. Set DEFAULT_MODEL and a provider's key to get real answers."
    )
    if wanted.output_object is None or wanted.output_mode not in {"prompted", "native"}:
        return words
    shape = wanted.output_object.json_schema
    return json.dumps(SmallestValue(shape).find() if "properties" in shape else {"response": words})


def _last_question(messages: list[ModelMessage]) -> str:
    for message in reversed(messages):
        if isinstance(message, ModelRequest):
            for part in reversed(message.parts):
                if isinstance(part, UserPromptPart):
                    return part.content if isinstance(part.content, str) else "(content other than text)"
    return ""


def _usage(messages: list[ModelMessage], reply: str) -> RequestUsage:
    return RequestUsage(input_tokens=len(_last_question(messages).split()), output_tokens=len(reply.split()))
