"""A Responses request, and the question that it asks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field

from app.api.json_route import Text
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
from app.core.responses import Talk
from app.core.run import CacheMode, ClientTool, Image, OutputSchema, Question, RunSettings, ToolCall

if TYPE_CHECKING:
    from app.core.agents import AgentDefinition

_Id = Annotated[Text, Field(min_length=1, max_length=200)]


class InputPart(Lenient):
    """One part of a message."""

    type: str
    text: Text | None = None
    refusal: Text | None = None
    image_url: str | None = None


class ItemBody(Lenient):
    """One item of the talk so far; its fields depend on its type."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Text | list[InputPart] | None = None
    call_id: _Id | None = None
    name: ToolName | None = None
    arguments: Text | None = None
    output: Text | list[InputPart] | None = None


class ToolBody(Lenient):
    """A tool that the client runs; what it holds depends on its type."""

    model_config = ConfigDict(extra="allow")

    type: str


class _Choice(Lenient):
    type: Literal["function"]
    name: ToolName


class FormatBody(Lenient):
    """The form of the answer."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"]


class TextBody(Lenient):
    """How the text shall be."""

    format: FormatBody | None = None
    verbosity: str | None = None


@dataclass(frozen=True, slots=True)
class AskedResponse:
    """The question, and the rules that the next one shall keep."""

    question: Question
    rules: tuple[str, ...]


class ConversationBody(Lenient):
    """The conversation that a response belongs to."""

    id: Annotated[Text, Field(min_length=1, max_length=64)]


class ResponsesBody(Part):
    """The parameters that mean something here; what else is sent is harmless or refused."""

    model: Name
    input: Text | Annotated[list[ItemBody], Field(min_length=1, max_length=10_000)]
    instructions: Text | None = None
    previous_response_id: _Id | None = None
    conversation: Annotated[str, Field(min_length=1, max_length=64)] | ConversationBody | None = None
    store: bool | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_output_tokens: MaxTokens | None = None
    text: TextBody | None = None
    tools: Annotated[list[ToolBody], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | _Choice | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation, in whichever form it was sent."""
        return self.conversation.id if isinstance(self.conversation, ConversationBody) else self.conversation

    def check_past(self) -> None:
        """Raise `UnsupportedParameter` where the request names two pasts."""
        if self.previous_response_id is not None and self.conversation is not None:
            raise unsupported("previous_response_id", "a conversation has its own past; send one of the two")

    def asked(
        self, agent: "AgentDefinition", before: Talk, *, cache_mode: CacheMode, conversation_id: str | None = None
    ) -> AskedResponse:
        """What is asked of `agent` after what was said `before`. Raises `UnsupportedParameter` or `InvalidFields`."""
        refuse_unsupported(self.model_extra, harmless=("stream_options", "user", "store"))
        for name in self.include or ():
            if "logprobs" in name:
                raise unsupported("include", f"leave {name} out")
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise unsupported("text.verbosity", "leave it out")
        rules = list(before.rules)
        turns: list[Turn] = []
        if isinstance(self.input, str):
            turns.append(UserTurn(self.input))
        else:
            for at, item in enumerate(self.input):
                _add(turns, rules, item, at)
        opening = opening_of(turns, field="input", before=before.messages)
        if conversation_id is not None and opening.history:
            raise unsupported("input", "the conversation holds what was said before; send only what is new")
        question = Question(
            message=opening.message,
            agent=agent.name,
            conversation_id=conversation_id,
            settings=RunSettings(temperature=self.temperature, max_tokens=self.max_output_tokens, top_p=self.top_p),
            cache_mode=cache_mode,
            images=opening.images,
            history=opening.history,
            instructions="\n\n".join(rule for rule in (self.instructions, *rules) if rule) or None,
            client_tools=tuple(_tool(tool, at, agent) for at, tool in enumerate(self.tools or ())),
            tool_choice=self.tool_choice.name if isinstance(self.tool_choice, _Choice) else self.tool_choice or "auto",
            output_schema=self._shape(agent),
        )
        check_tool_choice(question)
        return AskedResponse(question, tuple(rules))

    def _shape(self, agent: "AgentDefinition") -> OutputSchema | Literal["json"] | None:
        form = self.text and self.text.format
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            refuse_second_shape(agent, "text.format")
            return "json"
        return output_schema(SchemaBody.checked(form.model_extra or {}, "text.format"), agent, "text.format")


def _tool(tool: ToolBody, at: int, agent: "AgentDefinition") -> ClientTool:
    if tool.type != "function":
        raise unsupported(f"tools.{at}.type", "only functions can be called")
    function = FunctionBody.checked(tool.model_extra or {}, f"tools.{at}")
    return client_tool(function, f"tools.{at}.name", agent)


def _add(turns: list[Turn], rules: list[str], item: ItemBody, at: int) -> None:
    where = f"input.{at}"
    match item.type:
        case "message":
            if item.content is None or item.role is None:
                raise wrong(f"{where}.{'role' if item.content else 'content'}", "is missing")
            text = _text(item.content, f"{where}.content", pictures=item.role == "user")
            match item.role:
                case "system" | "developer":
                    rules.append(text)
                case "user":
                    turns.append(UserTurn(text, _pictures(item.content, f"{where}.content")))
                case "assistant":
                    turns.append(AgentTurn(text))
        case "function_call":
            if item.call_id is None or item.name is None:
                raise wrong(f"{where}.{'call_id' if item.call_id is None else 'name'}", "is missing")
            call = ToolCall(item.call_id, item.name, item.arguments or "{}")
            before = turns[-1] if turns else None
            if isinstance(before, AgentTurn):
                # What an agent says and calls in one go is one turn.
                turns[-1] = AgentTurn(before.text, (*before.calls, call))
            else:
                turns.append(AgentTurn("", (call,)))
        case "function_call_output":
            if item.call_id is None or item.output is None:
                raise wrong(f"{where}.{'call_id' if item.call_id is None else 'output'}", "is missing")
            turns.append(ToolTurn(item.call_id, _text(item.output, f"{where}.output", pictures=False)))
        case "reasoning":
            pass  # of another provider; nothing here could read it
        case _:
            raise unsupported(f"{where}.type", "send messages, function calls and their outputs")


def _text(content: str | list[InputPart], where: str, *, pictures: bool) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for place, part in enumerate(content):
        match part.type:
            case "input_text" | "output_text" | "text" if part.text is not None:
                texts.append(part.text)
            case "refusal":
                texts.append(part.refusal or "")
            case "input_image" if pictures:
                pass
            case _:
                raise unsupported(f"{where}.{place}.type", "send text, or pictures from a user")
    return "\n".join(texts)


def _pictures(content: str | list[InputPart], where: str) -> tuple[Image, ...]:
    if isinstance(content, str):
        return ()
    found: list[Image] = []
    for place, part in enumerate(content):
        if part.type == "input_image":
            if part.image_url is None:
                raise unsupported(f"{where}.{place}.file_id", "send the picture as a data: URL in image_url")
            found.append(picture(part.image_url, f"{where}.{place}.image_url"))
    return tuple(found)
