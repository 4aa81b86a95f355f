"""What OpenAI's two requests have in common: parameters that mean nothing here, pictures, tools, formats."""

import binascii
import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.api.json_route import Text
from app.core.run import ClientTool, Image, OutputSchema, Question
from app.errors import FieldFault, InvalidFields, UnsupportedParameter

if TYPE_CHECKING:
    from app.core.agents import AgentDefinition

INT64_MAX = 2**63 - 1
Name = Annotated[Text, Field(min_length=1, max_length=200)]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
MaxTokens = Annotated[int, Field(ge=1, le=INT64_MAX)]

_HARMLESS = frozenset(
    {
        # Bookkeeping, and hints about speed and price: nothing of it changes what the answer may say.
        *("user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls", "prediction"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    }
)
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "verbosity": ("medium",),
    "background": (False,),
    "truncation": ("disabled",),
    "reasoning": ({},),
}
"""Values of unsupported parameters that ask for nothing, as clients send them by default."""

_CURES = {
    "n": "ask n times",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "background": "use stream",
}
_PICTURE = re.compile(r"data:(image/(?:png|jpeg|gif|webp));base64,(.*)", re.DOTALL)
_RESERVED = frozenset({"auto", "none", "required"})
_OUTPUT_TOOL = "final_result"
"""What the output tools of an agent with a shape of its own are called."""


class Part(BaseModel):
    """A request's object whose further fields are looked at by hand."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class Lenient(BaseModel):
    """A part of a message: clients send back what other servers put there, so further fields are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    @classmethod
    def checked(cls, value: object, param: str) -> Self:
        """`value` as this. Raises `InvalidFields` for the field below `param` that is wrong."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise wrong(".".join([param, *map(str, fault["loc"])]), fault["msg"]) from error


class FunctionBody(Lenient):
    """A function as Chat Completions nest it."""

    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class SchemaBody(Lenient):
    """The shape that is wanted."""

    name: ToolName
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    description: Text | None = None


def refuse_unsupported(extra: Mapping[str, Any] | None, *, harmless: Iterable[str] = ()) -> None:
    """Raise `UnsupportedParameter` for the first parameter that would change the answer and cannot here."""
    for name, value in (extra or {}).items():
        if value is None or name in _HARMLESS or name in harmless or value in _NEUTRAL.get(name, ()):
            continue
        raise unsupported(name, _CURES.get(name, "leave it out"))


def unsupported(param: str, cure: str) -> UnsupportedParameter:
    """An error for what cannot be done here, with the way out."""
    return UnsupportedParameter(
        f"{param} is not supported by this server; {cure}", errors=[FieldFault(param, f"is not supported; {cure}")]
    )


def wrong(param: str, message: str) -> InvalidFields:
    """An error for one field."""
    return InvalidFields("some fields are missing, unknown or out of bounds", errors=[FieldFault(param, message)])


def picture(url: str, param: str) -> Image:
    """The picture inside a `data:` URL. Nothing is ever fetched: a server that fetches reaches what clients cannot."""
    found = _PICTURE.fullmatch(url)
    if found is None:
        if url.startswith("data:"):
            raise wrong(param, "must be a base64 data: URL of image/png, image/jpeg, image/gif or image/webp")
        raise unsupported(param, "send the picture itself, as data:image/png;base64,...; this server fetches no URL")
    try:
        data = b64decode(found[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong(param, "is not valid base64") from error
    if not data:
        raise wrong(param, "holds no picture")
    return Image(data, found[1])


def client_tool(function: FunctionBody, param: str, agent: "AgentDefinition") -> ClientTool:
    """A tool of the client, if this agent can be given it."""
    taken = function.name.startswith(_OUTPUT_TOOL) and not answers_with_text(agent)
    if taken or function.name in _RESERVED:
        raise wrong(param, f"{function.name!r} means something else here; choose another name")
    if any(tool.name == function.name for tool in agent.tools):
        raise wrong(param, f"the agent {agent.name!r} has a tool of its own called {function.name!r}")
    parameters = function.parameters or {"type": "object", "properties": {}}
    return ClientTool(function.name, function.description, parameters, function.strict)


def output_schema(shape: SchemaBody, agent: "AgentDefinition", param: str) -> OutputSchema:
    """The shape, if this agent may be asked for one."""
    refuse_second_shape(agent, param)
    return OutputSchema(shape.name, shape.schema_, shape.strict, shape.description)


def refuse_second_shape(agent: "AgentDefinition", param: str) -> None:
    """An agent that answers in a shape of its own cannot take another one."""
    if not answers_with_text(agent):
        raise unsupported(param, f"the agent {agent.name!r} answers in a shape of its own")


def answers_with_text(agent: "AgentDefinition") -> bool:
    """Whether the agent's own answer is text."""
    return agent.output_schema == {"type": "string"}


def check_tool_choice(question: Question) -> None:
    """The tool that has to be called must be there."""
    choice, names = question.tool_choice, {tool.name for tool in question.client_tools}
    if choice in ("auto", "none") or (choice == "required" and names) or choice in names:
        return
    raise wrong("tool_choice", "asks for a tool that `tools` does not have")
