"""A Chat Completions request, and the question that it asks."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from app.api.json_route import Text
from app.api.openai.conversation import NamedConversation
from app.api.openai.parameters import (
    FunctionBody,
    Lenient,
    MaxTokens,
    Name,
    Part,
    SchemaBody,
    Temperature,
    ToolName,
    TopP,
    check_tool_choice,
    client_tool,
    output_schema,
    picture,
    refuse_second_shape,
    refuse_unsupported,
    unsupported,
    wrong,
)
from app.core.dialogue import AgentTurn, ToolTurn, Turn, UserTurn, opening_of
from app.core.run import CacheMode, ClientTool, Image, OutputSchema, Question, RunSettings, ToolCall

if TYPE_CHECKING:
    from app.core.agents import AgentDefinition

INT64_MAX = 2**63 - 1
_Stop = Annotated[Text, Field(min_length=1, max_length=200)]


class ImageUrlBody(Lenient):
    """A picture; `detail` is a hint that providers may ignore."""

    url: str


class ContentPart(Lenient):
    """One part of a message."""

    type: str
    text: Text | None = None
    refusal: Text | None = None
    image_url: ImageUrlBody | None = None


class CalledFunction(Lenient):
    """The function that was called, and with what."""

    name: ToolName
    arguments: Text = "{}"


class CallBody(Lenient):
    """A call to a tool of the client, as this server wrote it before."""

    id: Annotated[Text, Field(min_length=1, max_length=200)]
    type: Literal["function"] = "function"
    function: CalledFunction


class MessageBody(Lenient):
    """One message of the talk so far."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[ContentPart] | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: Text | None = None


class ToolBody(Lenient):
    """A tool that the client runs."""

    type: str
    function: FunctionBody | None = None


class _ChosenFunction(Lenient):
    name: ToolName


class _Choice(Lenient):
    type: Literal["function"]
    function: _ChosenFunction


class FormatBody(Lenient):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaBody | None = None


class StreamOptions(Lenient):
    """What else a stream says."""

    include_usage: bool = False


class ChatBody(Part):
    """The parameters that mean something here; what else is sent is harmless or refused."""

    model: Name
    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=10_000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    response_format: FormatBody | None = None
    tools: Annotated[list[ToolBody], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | _Choice | None = None

    def question(
        self, agent: "AgentDefinition", *, cache_mode: CacheMode, conversation: NamedConversation | None
    ) -> Question:
        """What is asked of `agent`. Raises `UnsupportedParameter` or `InvalidFields`; imports the agent stack."""
        refuse_unsupported(self.model_extra)
        rules: list[str] = []
        turns: list[Turn] = []
        for at, message in enumerate(self.messages):
            if message.role in ("system", "developer"):
                rules.append(_text(message, at))
            else:
                turns.append(_turn(message, at))
        opening = opening_of(turns, field="messages")
        question = Question(
            message=opening.message,
            agent=agent.name,
            conversation_id=None if conversation is None else conversation.id,
            settings=RunSettings(
                temperature=self.temperature,
                max_tokens=self.max_completion_tokens or self.max_tokens,
                top_p=self.top_p,
                seed=self.seed,
                stop=None if not self.stop else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            ),
            cache_mode=cache_mode,
            images=opening.images,
            history=opening.history,
            tells_history=conversation is not None and conversation.tells_history,
            instructions="\n\n".join(rule for rule in rules if rule) or None,
            client_tools=tuple(self._tool(tool, at, agent) for at, tool in enumerate(self.tools or ())),
            tool_choice=self._choice(),
            output_schema=self._shape(agent),
        )
        check_tool_choice(question)
        return question

    def _tool(self, tool: ToolBody, at: int, agent: "AgentDefinition") -> ClientTool:
        if tool.type != "function" or tool.function is None:
            raise unsupported(f"tools.{at}.type", "only functions can be called")
        return client_tool(tool.function, f"tools.{at}.function.name", agent)

    def _choice(self) -> str:
        match self.tool_choice:
            case None:
                return "auto"
            case str() as word:
                return word
            case _Choice() as choice:
                return choice.function.name

    def _shape(self, agent: "AgentDefinition") -> OutputSchema | Literal["json"] | None:
        form = self.response_format
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            refuse_second_shape(agent, "response_format")
            return "json"
        if form.json_schema is None:
            raise wrong("response_format.json_schema", "is missing")
        return output_schema(form.json_schema, agent, "response_format")


def _turn(message: MessageBody, at: int) -> Turn:
    match message.role:
        case "user":
            return UserTurn(_text(message, at), _pictures(message, at))
        case "assistant":
            calls = (
                ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()
            )
            return AgentTurn(_text(message, at), tuple(calls))
        case "tool":
            if message.tool_call_id is None:
                raise wrong(f"messages.{at}.tool_call_id", "is missing")
            return ToolTurn(message.tool_call_id, _text(message, at))
        case _:
            raise unsupported(f"messages.{at}.role", "use the role tool")


def _text(message: MessageBody, at: int) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant":
            return ""
        raise wrong(f"messages.{at}.content", "is missing")
    texts: list[str] = []
    for place, part in enumerate(content):
        match part.type:
            case "text":
                if part.text is None:
                    raise wrong(f"messages.{at}.content.{place}.text", "is missing")
                texts.append(part.text)
            case "refusal" if message.role == "assistant":
                texts.append(part.refusal or "")
            case "image_url" if message.role == "user":
                pass
            case _:
                raise unsupported(f"messages.{at}.content.{place}.type", "send text, or pictures from a user")
    return "\n".join(texts)


def _pictures(message: MessageBody, at: int) -> tuple[Image, ...]:
    if not isinstance(message.content, list):
        return ()
    found: list[Image] = []
    for place, part in enumerate(message.content):
        if part.type == "image_url":
            param = f"messages.{at}.content.{place}.image_url"
            if part.image_url is None:
                raise wrong(param, "is missing")
            found.append(picture(part.image_url.url, f"{param}.url"))
    return tuple(found)
