"""The direct tier: one model request is made without the agent graph, and where it was enough, the run is over."""

# pyright: reportPrivateUsage=false
# Whether an agent can do more than one request stands in private fields of Pydantic AI; in doubt it is the graph.

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, cast

from pydantic_ai import Agent, ModelMessage, ModelRequest, ModelResponse, ModelSettings, RunContext, TextPart, Tool
from pydantic_ai._utils import fill_run_metadata
from pydantic_ai.agent import _AUTO_INJECT_CAPABILITY_TYPES
from pydantic_ai.messages import UserContent, UserPromptPart
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models._request_timeout import enforce_request_deadline, open_request_stream, start_request_deadline
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.run import AgentRunResult, AgentRunResultEvent
from pydantic_ai.settings import merge_model_settings
from pydantic_ai.usage import RunUsage

from app.core.identity import new_uuid7
from app.core.openai_chat import LeanChatModel, StreamForm
from app.core.plain_chat import MARK, Form, is_plain
from app.core.prices import fill_cost
from app.core.provider_guard import GuardedModel
from app.core.text_stream import StreamsTexts, TextStream

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
    asks_directly: bool
    """Whether the first request is made without the graph, which then takes over where a tool is called."""


def tier_of(agent: AnyAgent) -> Tier:
    """The tier of `agent`, from what it is made of; decided once, when it is registered."""
    if (reason := _why_graph(agent)) is not None:
        return Tier("graph", reason, asks_directly=False)
    if agent._function_toolset.tools:
        return Tier("graph", "it has tools; an answer that calls none of them is given directly", asks_directly=True)
    return Tier("direct", "it makes one model request and answers with its text", asks_directly=True)


@dataclass(frozen=True, slots=True)
class DirectResult:
    """What a direct run gave; reads like an `AgentRunResult`."""

    output: str
    usage: RunUsage
    messages: list[ModelMessage]
    """What was said before, the request, and its answer."""

    @property
    def response(self) -> ModelResponse:
        """The provider's answer."""
        last = self.messages[-1]
        assert isinstance(last, ModelResponse)
        return last

    def all_messages(self) -> list[ModelMessage]:
        """The history, the request and its answer."""
        return self.messages

    def new_messages(self) -> list[ModelMessage]:
        """The request and its answer."""
        return self.messages[-2:]


Prompt = str | Sequence[UserContent]

_Kind = tuple[str | None, str]
"""What a form depends on, the agent and its model apart: the instructions of the run, and its settings."""

_F = TypeVar("_F", Form, StreamForm)
_Write = Callable[[list[ModelMessage], ModelSettings | None, ModelRequestParameters], Awaitable[_F | None]]


class DirectAgent:
    """An agent whose first request needs no graph, on one model.

    What it sends is asked of the graph once for each text of instructions: a first run is stopped at the model, and
    its messages, settings and parameters are the pattern of all later ones. An answer that is more than text (a tool
    call, a refusal, nothing at all) is handed to the graph, as if the graph had received it; nothing is asked for
    twice. A history of anything but plain texts, and settings that leave traces, go through the graph.

    Where the model is a lean one, a plain prompt without a history fills a form that was written before; what is
    streamed has forms of its own.
    """

    def __init__(self, agent: AnyAgent, model: Model[Any]) -> None:
        assert tier_of(agent).asks_directly
        self._agent = agent
        self._model = model
        self._model_id = model.model_id
        self._patterns: dict[str | None, _Pattern] = {}
        self._guard = model.guard if isinstance(model, GuardedModel) else None
        lean = model.wrapped if isinstance(model, GuardedModel) else model
        self._lean = lean if isinstance(lean, LeanChatModel) else None
        self._forms: dict[_Kind, tuple[_Pattern, Form] | None] = {}
        self._stream_forms: dict[_Kind, tuple[_Pattern, StreamForm] | None] = {}

    async def run(
        self,
        prompt: Prompt,
        *,
        run_id: str,
        model_settings: ModelSettings | None = None,
        history: Sequence[ModelMessage] = (),
        instructions: str | None = None,
        deps: Any = None,
    ) -> DirectResult | AgentRunResult[Any]:
        """The answer to `prompt`, with the messages, usage, cost and errors of `agent.run`."""
        asked = _Asked(prompt, run_id, model_settings, history, instructions, deps)
        if self._lean is not None and (found := await self._form(asked, self._forms, self._lean.form)) is not None:
            pattern, form = found
            request = pattern.request(asked)
            response = await self._fill(form, cast("str", prompt))
            return self._finished(asked, request, response) or await self._by_graph(asked, response)
        prepared = await self._prepare(asked)
        if prepared is None:
            return await self._by_graph(asked)
        request, messages, settings, parameters = prepared
        deadline = start_request_deadline(self._model, settings, stream=False)
        with enforce_request_deadline(deadline):
            response = await self._model.request(messages, settings, parameters)
        return self._finished(asked, request, response) or await self._by_graph(asked, response)

    async def stream(
        self,
        prompt: Prompt,
        tell: Callable[[object], None],
        *,
        run_id: str,
        model_settings: ModelSettings | None = None,
        history: Sequence[ModelMessage] = (),
        instructions: str | None = None,
        deps: Any = None,
    ) -> DirectResult | AgentRunResult[Any]:
        """The same as `run`, with Pydantic AI's events, or a text where one would say no more, passed to `tell`.

        Cancel it to end the stream.
        """
        asked = _Asked(prompt, run_id, model_settings, history, instructions, deps)
        model = self._model
        lean = self._lean if self._lean is not None and self._lean.streams_texts else None
        if lean is not None and (found := await self._form(asked, self._stream_forms, lean.stream_form)) is not None:
            pattern, form = found
            request = pattern.request(asked)
            async with self._open_filled(form, cast("str", prompt)) as texts:
                async for text in texts:
                    tell(text)
            response = texts.response
            return self._finished(asked, request, response) or await self._stream_by_graph(asked, tell, response)
        prepared = await self._prepare(asked)
        if prepared is None:
            return await self._stream_by_graph(asked, tell)
        request, messages, settings, parameters = prepared
        if isinstance(model, StreamsTexts) and model.streams_texts and not _has_deadline(model, settings):
            async with model.open_texts(messages, settings, parameters) as texts:
                async for text in texts:
                    tell(text)
            response = texts.response
        else:
            async with open_request_stream(model, messages, settings, parameters) as stream:
                async for event in stream:
                    tell(event)
                response = stream.get()
        return self._finished(asked, request, response) or await self._stream_by_graph(asked, tell, response)

    async def _prepare(
        self, asked: "_Asked"
    ) -> tuple[ModelRequest, list[ModelMessage], ModelSettings | None, ModelRequestParameters] | None:
        """What to send, or `None` where the graph has to run."""
        pattern = self._patterns.get(asked.instructions) or await self._learn(asked.instructions)
        settings = merge_model_settings(pattern.settings, asked.settings)
        if not _COVERED.issuperset(settings or ()) or not _is_plain(asked.history):
            return None
        request = pattern.request(asked)
        messages = self._model.prepare_messages([*asked.history, request], pattern.parameters)
        return request, messages, settings, pattern.parameters

    async def _form(
        self, asked: "_Asked", known: "dict[_Kind, tuple[_Pattern, _F] | None]", write: "_Write[_F]"
    ) -> "tuple[_Pattern, _F] | None":
        """The form that `asked` fills and its pattern, or `None` where it has to be written out."""
        if asked.history or not isinstance(asked.prompt, str) or not is_plain(asked.prompt):
            return None
        kind = (asked.instructions, repr(asked.settings))
        if kind in known:
            return known[kind]
        if len(known) >= _PATTERNS_KEPT:
            known.pop(next(iter(known)))
        found = None
        prepared = await self._prepare(replace(asked, prompt=MARK))
        if prepared is not None and not _has_deadline(self._model, prepared[2]):
            _, messages, settings, parameters = prepared
            form = await write(messages, settings, parameters)
            found = None if form is None else (self._patterns[asked.instructions], form)
        known[kind] = found
        return found

    async def _fill(self, form: Form, prompt: str) -> ModelResponse:
        assert self._lean is not None
        if self._guard is None:
            return await self._lean.answer(form, prompt)
        return await self._guard.call(
            partial(self._lean.answer, form, prompt), model=cast("GuardedModel", self._model).name
        )

    def _open_filled(self, form: StreamForm, prompt: str) -> AbstractAsyncContextManager[TextStream]:
        assert self._lean is not None
        if self._guard is None:
            return self._lean.open_answer(form, prompt)
        return self._guard.opened(
            partial(self._lean.open_answer, form, prompt), model=cast("GuardedModel", self._model).name
        )

    def _finished(self, asked: "_Asked", request: ModelRequest, response: ModelResponse) -> DirectResult | None:
        """The result, or `None` where the graph has to judge the response."""
        if response.state != "complete" or not all(type(part) is TextPart for part in response.parts):
            return None
        text = "".join(part.content for part in response.parts if isinstance(part, TextPart))
        if not text:
            return None
        fill_run_metadata(response, run_id=request.run_id, conversation_id=request.conversation_id)
        response.model_id = response.model_id or self._model_id
        fill_cost(response)
        usage = RunUsage(requests=1)
        usage.incr(response.usage)
        return DirectResult(text, usage, [*asked.history, request, response])

    async def _by_graph(self, asked: "_Asked", response: ModelResponse | None = None) -> AgentRunResult[Any]:
        return await self._agent.run(asked.prompt, model=self._answered(response), **asked.options())

    async def _stream_by_graph(
        self, asked: "_Asked", tell: Callable[[object], None], response: ModelResponse | None = None
    ) -> AgentRunResult[Any]:
        options = asked.options()
        async with self._agent.run_stream_events(asked.prompt, model=self._answered(response), **options) as events:
            async for event in events:
                if isinstance(event, AgentRunResultEvent):
                    return event.result
                tell(event)
        raise AssertionError("a run ends with its result")

    def _answered(self, response: ModelResponse | None) -> Model[Any]:
        """The model, with its first answer where it was received already; of that one no event is told again."""
        if response is None:
            return self._model
        fill_cost(response)  # The graph asks the whole price list where there is none yet.
        return _AlreadyAnswered(self._model, response)

    async def _learn(self, instructions: str | None) -> "_Pattern":
        probe = _Probe(self._model)
        try:
            await self._agent.run("probe", model=probe, instructions=instructions)
        except _Caught as caught:
            if len(self._patterns) >= _PATTERNS_KEPT:
                self._patterns.pop(next(iter(self._patterns)))
            self._patterns[instructions] = caught.pattern
            return caught.pattern
        raise AssertionError("an agent asks its model")


def _has_deadline(model: Model[Any], settings: ModelSettings | None) -> bool:
    return start_request_deadline(model, settings, stream=True) is not None


_PATTERNS_KEPT = 256
"""Texts of instructions whose pattern is remembered: a caller's own system prompts are few, and each is learnt once."""


@dataclass(frozen=True, slots=True)
class _Asked:
    prompt: Prompt
    run_id: str
    settings: ModelSettings | None
    history: Sequence[ModelMessage]
    instructions: str | None
    deps: Any

    def options(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "model_settings": self.settings,
            "message_history": list(self.history) or None,
            "instructions": self.instructions,
            "deps": self.deps,
        }


@dataclass(frozen=True, slots=True)
class _Pattern:
    sent: ModelRequest
    settings: ModelSettings | None
    parameters: ModelRequestParameters

    def request(self, asked: _Asked) -> ModelRequest:
        # System prompts stand at the beginning of a history, and nowhere else.
        before = () if asked.history else self.sent.parts[:-1]
        request = ModelRequest(parts=[*before, UserPromptPart(asked.prompt)], instructions=self.sent.instructions)
        fill_run_metadata(request, run_id=asked.run_id, conversation_id=new_uuid7())
        return request


def _is_plain(history: Sequence[ModelMessage]) -> bool:
    """Whether user and assistant spoke in turn, in text alone, and the assistant had the last word."""
    asks = True
    for message in history:
        if asks:
            if not isinstance(message, ModelRequest) or message.instructions is not None or len(message.parts) != 1:
                return False
            part = message.parts[0]
            if type(part) is not UserPromptPart or not isinstance(part.content, str):
                return False
        elif (
            not isinstance(message, ModelResponse)
            or message.state != "complete"
            or len(message.parts) != 1
            or type(message.parts[0]) is not TextPart
            or not message.parts[0].content
        ):
            return False
        asks = not asks
    return asks


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


def _is_static(tool: Tool[Any]) -> bool:
    """Whether the model is shown this tool in the same words every time, and may call it at once."""
    return type(tool) is Tool and not (tool.prepare or tool.defer_loading or tool.requires_approval or tool.tool_kind)


def _why_graph(agent: AnyAgent) -> str | None:
    """What makes the graph necessary, or `None`."""
    if type(agent) is not Agent:
        return "it is an agent class of its own"
    if agent.output_type is not str:
        return "it has an output schema"
    if agent._output_validators:
        return "it has output validators"
    toolset = agent._function_toolset
    if toolset._instructions or not all(_is_static(tool) for tool in toolset.tools.values()):
        return "it has tools that change between requests, or wait for an approval"
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
