"""One run of an agent: the question in Pydantic AI's words, then its events and its outcome in ours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic_ai import (
    BinaryContent,
    DeferredToolRequests,
    ExternalToolset,
    ModelSettings,
    NativeOutput,
    PromptedOutput,
    RunUsage,
    StructuredDict,
    ToolDefinition,
)
from pydantic_ai.messages import (
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.run import AgentRunResult, AgentRunResultEvent
from pydantic_core import to_jsonable_python

from app.core.agent_pool import PooledAgent
from app.core.direct_run import DirectResult
from app.core.flights import Tell
from app.core.run import (
    FinishReason,
    Output,
    Question,
    RunSettings,
    TextDelta,
    ToolCall,
    ToolFinished,
    ToolStarted,
    Usage,
)
from app.core.text_stream import text_of
from app.errors import FieldFault, InvalidFields

Result = DirectResult | AgentRunResult[Any]

_FINISH: dict[str | None, FinishReason] = {
    "length": "length",
    "content_filter": "content_filter",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave, in our words."""

    output: Output
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    cost_usd: Any
    new_messages: list[ModelMessage]
    provider: str | None
    """Whose model had the last word; one of several where there are fallbacks."""

    @property
    def written_messages(self) -> bytes | None:
        """The new messages as JSON; `None` where prompt and text say it all."""
        match self.new_messages:
            case [ModelRequest(parts=[UserPromptPart(content=str())]), ModelResponse(parts=[TextPart()])]:
                return None
            case _:
                return ModelMessagesTypeAdapter.dump_json(self.new_messages)


async def run_agent(
    entry: PooledAgent, question: Question, deps: Any, *, run_id: str, tell: Tell | None, usage: RunUsage | None = None
) -> Outcome:
    """Answer `question` with a live agent. With `tell` the model is asked for a stream, and what comes is passed on.

    `usage` takes up what each model request used, as it ends; an answer in one request says it with its outcome.
    Raises what Pydantic AI raises, and `InvalidFields` for a question that this agent cannot be asked.
    """
    prompt = _prompt(question)
    settings = _model_settings(question)
    if entry.direct is not None and prompt is not None and _is_plain(question):
        return _outcome(await _run_direct(entry, question, prompt, settings, deps, run_id=run_id, tell=tell))
    options: dict[str, Any] = {
        "run_id": run_id,
        "deps": deps,
        "usage": usage,
        "message_history": list(question.history) or None,
        "instructions": question.instructions,
        # A Python agent is one object for every run, so the model comes with the run.
        "model": None if entry.agent.model is entry.model else entry.model,
        "model_settings": _with_tool_choice(question, settings),
        **_shape(entry, question),
    }
    if tell is None:
        return _outcome(await entry.agent.run(prompt, **options))
    async with entry.agent.run_stream_events(prompt, **options) as events:
        async for event in events:
            if isinstance(event, AgentRunResultEvent):
                return _outcome(event.result)
            _pass_on(event, tell)
    raise AssertionError("a run ends with its result")


def _pass_on(event: object, tell: Tell) -> None:
    match event:
        case FunctionToolCallEvent():
            tell(ToolStarted(event.tool_call_id, event.part.tool_name))
        case FunctionToolResultEvent():
            tell(ToolFinished(event.tool_call_id, event.part.tool_name, event.part.outcome == "success"))
        case _:
            if text := text_of(event):
                tell(TextDelta(text))


async def _run_direct(
    entry: PooledAgent,
    question: Question,
    prompt: str | Sequence[UserContent],
    settings: ModelSettings,
    deps: Any,
    *,
    run_id: str,
    tell: Tell | None,
) -> Result:
    assert entry.direct is not None
    asked: dict[str, Any] = {
        "run_id": run_id,
        "model_settings": settings,
        "history": question.history,
        "instructions": question.instructions,
        "deps": deps,
    }
    if tell is None:
        return await entry.direct.run(prompt, **asked)
    return await entry.direct.stream(prompt, lambda event: _pass_on(event, tell), **asked)


def _is_plain(question: Question) -> bool:
    """Whether nothing but text is wanted back."""
    return not question.client_tools and question.output_schema is None


def _prompt(question: Question) -> str | Sequence[UserContent] | None:
    if not question.images:
        return question.message
    pictures = [BinaryContent(one.data, media_type=one.media_type) for one in question.images]
    return [question.message, *pictures] if question.message else pictures


def _shape(entry: PooledAgent, question: Question) -> dict[str, Any]:
    """What the caller adds to the agent for this run: tools that the caller runs, and the shape of the answer."""
    if _is_plain(question):
        return {}
    output: Any = entry.agent.output_type
    if question.output_schema is not None:
        if output is not str:
            raise InvalidFields(
                "this agent answers in a shape of its own",
                errors=[FieldFault("response_format", "cannot be given to an agent that has an output schema")],
            )
        output = _output_type(entry, question)
    if not question.client_tools or question.tool_choice == "none":
        return {"output_type": output}
    tools = [
        ToolDefinition(
            name=tool.name, description=tool.description, parameters_json_schema=tool.parameters, strict=tool.strict
        )
        for tool in question.client_tools
    ]
    return {"output_type": [output, DeferredToolRequests], "toolsets": [ExternalToolset(tools, id="client")]}


def _output_type(entry: PooledAgent, question: Question) -> Any:
    wanted = question.output_schema
    assert wanted is not None
    if wanted == "json":
        return PromptedOutput(StructuredDict({"type": "object", "additionalProperties": True}, name="json"))
    shape = StructuredDict(wanted.schema, name=wanted.name, description=wanted.description)
    if entry.model.profile.get("supports_json_schema_output"):
        return NativeOutput(shape, name=wanted.name, description=wanted.description, strict=wanted.strict)
    return PromptedOutput(shape, name=wanted.name, description=wanted.description)


def _outcome(result: Result) -> Outcome:
    usage = result.usage
    response = result.response
    output: object = result.output
    calls: tuple[ToolCall, ...] = ()
    if isinstance(output, DeferredToolRequests):
        calls = tuple(ToolCall(call.tool_call_id, call.tool_name, call.args_as_json_str()) for call in output.calls)
        output = "".join(part.content for part in response.parts if isinstance(part, TextPart))
    return Outcome(
        output=_plain(output),
        tool_calls=calls,
        finish_reason="tool_calls" if calls else _FINISH.get(response.finish_reason, "stop"),
        usage=Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, requests=usage.requests),
        cost_usd=usage.cost,
        new_messages=list(result.new_messages()),
        provider=response.provider_name,
    )


def _plain(output: object) -> Output:
    if isinstance(output, str):
        return output
    plain = to_jsonable_python(output)
    return cast("Output", plain) if isinstance(plain, dict) else {"result": plain}


def _model_settings(question: Question) -> ModelSettings:
    settings: RunSettings = question.settings
    # The SDK's own retries are off: one failed request must not become three (failures in the field, row 58).
    chosen = ModelSettings(max_retries=0)
    if settings.temperature is not None:
        chosen["temperature"] = settings.temperature
    if settings.max_tokens is not None:
        chosen["max_tokens"] = settings.max_tokens
    if settings.top_p is not None:
        chosen["top_p"] = settings.top_p
    if settings.seed is not None:
        chosen["seed"] = settings.seed
    if settings.stop is not None:
        chosen["stop_sequences"] = list(settings.stop)
    return chosen


def _with_tool_choice(question: Question, settings: ModelSettings) -> ModelSettings | Callable[[Any], ModelSettings]:
    if not question.client_tools or question.tool_choice in ("auto", "none"):
        return settings
    names = [tool.name for tool in question.client_tools]
    chosen: ModelSettings = {
        **settings,
        "tool_choice": names if question.tool_choice == "required" else [question.tool_choice],
    }
    # As a function: Pydantic AI refuses a fixed choice that leaves no way to a final answer, but here the call ends
    # the run.
    return lambda _: chosen
