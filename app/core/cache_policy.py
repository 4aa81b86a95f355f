"""What the cache may do for an agent: the key of a question, whether it is asked once for all, which answers stay."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from hashlib import sha256
from typing import Any, cast

from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
)

from app.core.agents import AgentDefinition
from app.core.cache_key import CacheKey, cache_key
from app.core.conversation_messages import StoredHistory
from app.core.run import Caller, Question, RunSettings

_OF_ONE_RUN = frozenset(
    {
        *("timestamp", "run_id", "conversation_id", "usage", "cost", "metadata", "state", "finish_reason", "id"),
        *("model_name", "model_id", "provider_name", "provider_url", "provider_details", "provider_response_id"),
    }
)
"""Fields of a message that say when and by whom it was made, and nothing of what was said."""


_SETTINGS = tuple(field.name for field in fields(RunSettings))


def key_of(caller: Caller, definition: AgentDefinition, endpoints: Sequence[str], question: Question) -> CacheKey:
    """The name of the answer to `question`. `endpoints` are the models that may give it, with their base URLs."""
    # What is made with a caller's own dependencies is that caller's.
    shared = definition.options.cache.scope == "shared" and definition.deps is None
    prompt: object = question.message
    if question.images:
        prompt = [question.message, *([one.media_type, sha256(one.data).hexdigest()] for one in question.images)]
    tools: object = None
    if question.client_tools:
        tools = [[asdict(tool) for tool in question.client_tools], question.tool_choice]
    schema = question.output_schema
    return cache_key(
        scope="shared" if shared else f"user:{caller.id}",
        agent=definition.name,
        revision=definition.revision,
        models=endpoints,
        instructions=instructions_of(definition, question),
        history=canonical(question.history) if question.history else None,
        prompt=prompt,
        settings={name: getattr(question.settings, name) for name in _SETTINGS},
        output_schema=schema if isinstance(schema, str | None) else asdict(schema),
        tools=tools,
    )


def canonical(messages: Sequence[ModelMessage]) -> object:
    """`messages` without what differs between two runs that said the same: ids by their order, no times."""
    order: dict[str, int] = {}

    def clean(value: object) -> object:
        if isinstance(value, list):
            return [clean(item) for item in cast("list[object]", value)]
        if not isinstance(value, dict):
            return value
        kept: dict[str, object] = {}
        for name, item in cast("dict[str, object]", value).items():
            if name == "tool_call_id" and isinstance(item, str):
                kept[name] = order.setdefault(item, len(order))
            elif name not in _OF_ONE_RUN:
                # What a tool was given and gave is content, whatever its fields are called.
                kept[name] = item if name in ("args", "content") else clean(item)
        return kept

    if isinstance(messages, StoredHistory):
        return clean(messages.plain())
    return clean(ModelMessagesTypeAdapter.dump_python(list(messages), mode="json"))


def instructions_of(definition: AgentDefinition, question: Question) -> str | None:
    """The instructions of a run of this agent as far as they are known before it: joined as Pydantic AI joins them."""
    return "\n\n".join(part for part in (definition.instructions, question.instructions) if part).strip() or None


def may_be_kept(definition: AgentDefinition) -> bool:
    """Whether answers of this agent are looked up and kept at all."""
    return definition.options.cache.enabled


def may_be_shared_in_flight(definition: AgentDefinition) -> bool:
    """Whether equal questions at the same time may be one run: not where asking twice may have to act twice."""
    return not definition.open_tools and all(tool.effect != "write" for tool in definition.tools)


def ttl_of(definition: AgentDefinition, question: Question) -> float | None:
    """Seconds that an answer may live; `None` for the server's own."""
    agents, asked = definition.options.cache.ttl, question.cache_ttl_s
    if asked is not None and agents is not None and any(tool.effect == "read" for tool in definition.tools):
        # What an agent read of the world is as old as the agent allows, and no caller can allow more.
        return min(asked, agents)
    return asked or agents


def is_storable(messages: Sequence[ModelMessage], definition: AgentDefinition, question: Question) -> bool:
    """Whether a run may be kept: as defined, complete by the provider's own word, and nothing was changed by it."""
    expected = instructions_of(definition, question)
    called: set[str] = set()
    last = messages[-1] if messages else None
    for message in messages:
        match message:
            case ModelRequest():
                # Instructions made for this one run are not in the key. A request at the end was not sent.
                if message is not last and (message.instructions or None) != expected:
                    return False
                if any(isinstance(part, SystemPromptPart) for part in message.parts):
                    return False
            case ModelResponse():
                for part in message.parts:
                    if isinstance(part, ToolCallPart):
                        called.add(part.tool_name)
                    elif not isinstance(part, TextPart | ThinkingPart):
                        # A provider's own tool, a file: anything else may have had an effect, or may not last.
                        return False
                if message.finish_reason != ("tool_call" if _calls_tools(message) else "stop"):
                    return False
    called -= output_tools_of(definition)
    if question.client_tools:
        called -= {tool.name for tool in question.client_tools}
    match definition.effect_of(called):
        case "pure":
            return True
        case "read":
            return definition.options.cache.ttl is not None
        case "write":
            return False


def output_tools_of(definition: AgentDefinition) -> set[str]:
    """The names of the tools by which the model only hands over its answer."""
    toolset: Any = definition.prototype and definition.prototype._output_toolset  # pyright: ignore[reportPrivateUsage]
    return {tool.name for tool in toolset._tool_defs} if toolset is not None else set()


def _calls_tools(message: ModelResponse) -> bool:
    return any(isinstance(part, ToolCallPart) for part in message.parts)
