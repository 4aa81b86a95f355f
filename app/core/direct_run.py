"""The direct tier: an agent that can do nothing but one model request is answered without the agent graph."""

# pyright: reportPrivateUsage=false
# Whether an agent can do more than one request stands in private fields of Pydantic AI; in doubt it is the graph.

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_ai import Agent, ModelMessage, ModelRequest, ModelResponse, ModelSettings, RunContext, TextPart
from pydantic_ai._genai_prices import fill_response_cost
from pydantic_ai._utils import fill_run_metadata
from pydantic_ai._uuid import uuid7
from pydantic_ai.agent import _AUTO_INJECT_CAPABILITY_TYPES
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPartDelta, UserPromptPart
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models._request_timeout import enforce_request_deadline, open_request_stream, start_request_deadline
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.run import AgentRunResult, AgentRunResultEvent
from pydantic_ai.settings import merge_model_settings
from pydantic_ai.usage import RunUsage

from app.core.run import TextDelta

AnyAgent = Agent[Any, Any]

_COVERED = frozenset(
    [
        "max_retries",
        "temperature",
        "max_tokens",
        "top_p",
        "seed",
        "stop_sequences",
        "timeout",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "parallel_tool_calls",
        "extra_body",
        "extra_headers",
    ]
)
"""The settings under which a direct run equals the graph's. Others (`thinking`, `cache`) leave traces in messages."""


@dataclass(frozen=True, slots=True)
class Tier:
    """How an agent's runs are executed, and why."""

    name: Literal["direct", "graph"]
    reason: str


def tier_of(agent: AnyAgent) -> Tier:
    """The tier of `agent`, from what it is made of; decided once, when it is registered."""
    reason = _why_graph(agent)
    if reason is not None:
        return Tier("graph", reason)
    return Tier("direct", "it makes one model request and answers with its text")


@dataclass(frozen=True, slots=True)
class DirectResult:
    """What a direct run gave; reads like an `AgentRunResult`."""

    output: str
    usage: RunUsage
    messages: list[ModelMessage]

    @property
    def response(self) -> ModelResponse:
        """The provider's answer."""
        last = self.messages[-1]
        assert isinstance(last, ModelResponse)
        return last

    def all_messages(self) -> list[ModelMessage]:
        """The request and its answer."""
        return self.messages

    def new_messages(self) -> list[ModelMessage]:
        """The same: a direct run has no history."""
        return self.messages


class DirectAgent:
    """An agent of the direct tier on one model.

    What it sends is asked of the graph once: a first run is stopped at the model, and its messages, settings and
    parameters are the pattern of all later ones. An answer that is more than text (a tool call, a refusal, nothing at
    all) is handed to the graph, as if the graph had received it; nothing is asked for twice.
    """

    def __init__(self, agent: AnyAgent, model: Model[Any]) -> None:
        assert tier_of(agent).name == "direct"
        self._agent = agent
        self._model = model
        self._pattern: _Pattern | None = None

    async def run(
        self, prompt: str, *, run_id: str, model_settings: ModelSettings | None = None
    ) -> DirectResult | AgentRunResult[Any]:
        """The answer to `prompt`, with the messages, usage, cost and errors of `agent.run`."""
        pattern = self._pattern or await self._learn()
        request = pattern.request(prompt, run_id)
        settings = merge_model_settings(pattern.settings, model_settings)
        if not _COVERED.issuperset(settings or ()):
            return await self._agent.run(prompt, run_id=run_id, model_settings=model_settings)
        messages = self._model.prepare_messages([request], pattern.parameters)
        deadline = start_request_deadline(self._model, settings, stream=False)
        with enforce_request_deadline(deadline):
            response = await self._model.request(messages, settings, pattern.parameters)
        return self._finished(request, response) or await self._by_graph(prompt, run_id, model_settings, response)

    async def stream(
        self, prompt: str, *, run_id: str, model_settings: ModelSettings | None = None
    ) -> AsyncGenerator[TextDelta | DirectResult | AgentRunResult[Any]]:
        """The answer as it comes; the last event is the result. Close the generator to end the provider's stream."""
        pattern = self._pattern or await self._learn()
        request = pattern.request(prompt, run_id)
        settings = merge_model_settings(pattern.settings, model_settings)
        if not _COVERED.issuperset(settings or ()):
            async with self._agent.run_stream_events(prompt, run_id=run_id, model_settings=model_settings) as events:
                async for event in events:
                    if isinstance(event, AgentRunResultEvent):
                        yield event.result
                    elif text := _text_of(event):
                        yield TextDelta(text)
            return
        messages = self._model.prepare_messages([request], pattern.parameters)
        async with open_request_stream(self._model, messages, settings, pattern.parameters) as stream:
            async for event in stream:
                if text := _text_of(event):
                    yield TextDelta(text)
            response = stream.get()
        result = self._finished(request, response)
        yield result or await self._by_graph(prompt, run_id, model_settings, response)

    def _finished(self, request: ModelRequest, response: ModelResponse) -> DirectResult | None:
        """The result, or `None` where the graph has to judge the response."""
        if response.state != "complete" or not all(type(part) is TextPart for part in response.parts):
            return None
        text = "".join(part.content for part in response.parts if isinstance(part, TextPart))
        if not text:
            return None
        fill_run_metadata(response, run_id=request.run_id, conversation_id=request.conversation_id)
        response.model_id = response.model_id or self._model.model_id
        fill_response_cost(response)
        usage = RunUsage(requests=1)
        usage.incr(response.usage)
        return DirectResult(text, usage, [request, response])

    async def _by_graph(
        self, prompt: str, run_id: str, settings: ModelSettings | None, response: ModelResponse
    ) -> AgentRunResult[Any]:
        model = _AlreadyAnswered(self._model, response)
        return await self._agent.run(prompt, model=model, run_id=run_id, model_settings=settings)

    async def _learn(self) -> "_Pattern":
        probe = _Probe(self._model)
        try:
            await self._agent.run("probe", model=probe)
        except _Caught as caught:
            self._pattern = caught.pattern
            return caught.pattern
        raise AssertionError("an agent of the direct tier asks its model")


@dataclass(frozen=True, slots=True)
class _Pattern:
    sent: ModelRequest
    settings: ModelSettings | None
    parameters: ModelRequestParameters

    def request(self, prompt: str, run_id: str) -> ModelRequest:
        request = ModelRequest(
            parts=[*self.sent.parts[:-1], UserPromptPart(prompt)],
            instructions=self.sent.instructions,
        )
        fill_run_metadata(request, run_id=run_id, conversation_id=str(uuid7()))
        return request


class _Caught(BaseException):
    """Not an `Exception`, so that no error hook sees it."""

    def __init__(self, pattern: _Pattern) -> None:
        self.pattern = pattern


class _Probe(WrapperModel):
    """Takes note of what it is asked, and asks nobody."""

    def prepare_messages(
        self, messages: list[ModelMessage], model_request_parameters: ModelRequestParameters | None = None
    ) -> list[ModelMessage]:
        return messages  # as the graph has them; each run prepares its own

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        (sent,) = messages
        assert isinstance(sent, ModelRequest)
        raise _Caught(_Pattern(sent, model_settings, model_request_parameters))


class _AlreadyAnswered(WrapperModel):
    """Gives a response that was received before; from then on it is the wrapped model."""

    def __init__(self, wrapped: Model[Any], response: ModelResponse) -> None:
        super().__init__(wrapped)
        self._response: ModelResponse | None = response

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        response, self._response = self._response, None
        return response or await self.wrapped.request(messages, model_settings, model_request_parameters)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        response, self._response = self._response, None
        if response is not None:
            yield CompletedStreamedResponse(response, model_request_parameters=model_request_parameters)
            return
        async with self.wrapped.request_stream(
            messages, model_settings, model_request_parameters, run_context
        ) as stream:
            yield stream


def _text_of(event: object) -> str:
    match event:
        case PartStartEvent(part=TextPart(content=text)) | PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            return text
        case _:
            return ""


def _why_graph(agent: AnyAgent) -> str | None:
    """What makes the graph necessary, or `None`."""
    if type(agent) is not Agent:
        return "it is an agent class of its own"
    if agent.output_type is not str:
        return "it has an output schema"
    if agent._output_validators:
        return "it has output validators"
    if agent._function_toolset.tools:
        return "it has tools"
    if agent._user_toolsets or agent._dynamic_toolsets or agent._cap_toolsets:
        return "it has toolsets"
    if any(type(part) not in _AUTO_INJECT_CAPABILITY_TYPES for part in agent.root_capability.capabilities):
        return "it has capabilities"
    if agent._cap_instructions or agent._cap_model_settings or agent._event_hooks._registry:
        return "it has hooks"
    if agent.instrument or Agent._instrument_default:
        return "its runs are traced"
    if agent._metadata is not None:
        return "its runs carry metadata"
    if callable(agent.model_settings):
        return "its settings are computed"
    if agent._system_prompt_functions or not all(type(part.instruction) is str for part in agent._instructions):
        return "its instructions are computed"
    if agent._concurrency_limiter is not None:
        return "it bounds its own concurrency"
    return None
