"""A run: what was asked, what came of it. The words that every room shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from app.core.identity import new_id

if TYPE_CHECKING:
    from pydantic_ai import ModelMessage

CacheMode = Literal["use", "refresh", "off"]
"""`use`: read and store; `refresh`: run, then store; `off`: neither."""

CacheState = Literal["HIT", "MISS", "COALESCED", "REFRESH", "BYPASS"]
"""How the cache took part in an answer; the value of `X-Cache`."""

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
"""Why an answer ends; anything but `stop` and `tool_calls` was cut by the provider."""

OnBusy = Literal["wait", "reject"]
"""What a prompt does while another one is answered in its conversation."""

Output = str | dict[str, object]
"""What an agent answers: text, or an object where it has an output schema."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: always somebody. There is no anonymous caller and no empty one."""

    id: str
    username: str
    role: Literal["admin", "user"]
    key_id: str | None = None
    """The API key that was used, if one was."""
    agents: frozenset[str] | None = None
    """The only agents that the key may use; `None` for all."""
    requests_per_minute: int | None = None
    """The key's own limit beside the server's; `None` where it has none."""
    tokens_per_minute: int | None = None
    """The same for the tokens of models."""
    has_budget: bool = False
    """Whether the user or the key has a budget: whoever has none costs the database nothing."""
    chat_ui: bool = False
    """Whether the key belongs to a chat interface whose headers are believed."""

    @property
    def is_admin(self) -> bool:
        """Whether the caller may administer users, caches and settings."""
        return self.role == "admin"

    def may_use(self, agent: str) -> bool:
        """Whether an agent of this name exists for the caller."""
        return self.agents is None or agent in self.agents


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a caller may change about one run; `None` leaves it to the agent."""

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A picture that comes with a prompt."""

    data: bytes = field(repr=False)
    media_type: str


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool that the caller runs: the run ends with calls to it, and goes on when the results come back."""

    name: str
    description: str | None
    parameters: dict[str, Any]
    """JSON schema of the arguments."""
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call to a `ClientTool` that the caller has to answer."""

    call_id: str
    tool: str
    arguments: str
    """JSON, as the model wrote it."""


@dataclass(frozen=True, slots=True)
class OutputSchema:
    """The shape that the caller wants the answer in; for agents that answer with text."""

    name: str
    schema: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, readable by any room; nothing in it comes from HTTP."""

    message: str | None
    """`None` only where `history` ends with what the caller's tools gave."""
    agent: str = "default"
    model: str | None = None
    """Another model than the agent's own; must be one that the operator allows."""
    conversation_id: str | None = None
    on_busy: OnBusy = "wait"
    settings: RunSettings = field(default_factory=RunSettings)
    cache_mode: CacheMode = "use"
    cache_ttl_s: float | None = None
    images: tuple[Image, ...] = ()
    history: "Sequence[ModelMessage]" = ()
    """What was said before, oldest first. Where there is none, a stored conversation brings its own."""
    tells_history: bool = False
    """Whether `history` is all that was said before, also where it is empty: the conversation only takes down."""
    instructions: str | None = None
    """Added after the agent's own for this run."""
    client_tools: tuple[ClientTool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] | str = "auto"
    """Of the client's tools; any other value is the name of the one to call."""
    output_schema: OutputSchema | Literal["json"] | None = None
    """`json`: any JSON object."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the model's provider counted, summed over all requests of one run."""

    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request to one model, and how it ended."""

    model: str
    seconds: float
    outcome: str
    """`ok`, or the kind of failure in one word."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished run, ready to be rendered on any wire."""

    id: str
    output: Output
    agent: str
    model: str
    usage: Usage
    cost_usd: Decimal | None
    """`None` where the price of the model is not known."""
    model_s: float
    """Seconds spent waiting for the model, tools included."""
    conversation_id: str | None = None
    cache: CacheState = "MISS"
    storable: bool = False
    """Whether the cache may keep it: complete, and nothing was changed by it."""
    age_s: float = 0.0
    """Seconds since a kept answer was stored."""
    ttl_s: float | None = None
    """Seconds that it stays in the cache; `None` where it is not kept."""
    kept_as: bytes | None = field(default=None, repr=False)
    """The digest of the key under which the cache keeps it; `None` where it does not."""
    finish_reason: FinishReason = "stop"
    tool_calls: tuple[ToolCall, ...] = ()
    """What the caller has to do before the run goes on; `output` is then what was said so far."""
    attempts: tuple[Attempt, ...] = ()
    """The requests to models that this run made; none where it was answered from memory."""
    differs: tuple[str, ...] = ()
    """Of a miss: the ingredients of the key in which the nearest kept answer differs; empty where there is none."""
    messages: bytes | None = field(default=None, repr=False)
    """The new messages as Pydantic AI writes them (JSON); `None` where the text alone says it all."""


@dataclass(frozen=True, slots=True)
class Started:
    """The first event: which run this is, and whether it is answered from memory."""

    id: str
    agent: str
    model: str
    conversation_id: str | None
    cache: CacheState
    age_s: float = 0.0
    """Seconds since a kept answer was stored."""
    ttl_s: float | None = None
    """Seconds that a kept answer still stays."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """The agent calls one of its tools."""

    call_id: str
    tool: str


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """A tool came back, well or badly; its result stays inside."""

    call_id: str
    tool: str
    succeeded: bool


RunEvent = Started | TextDelta | ToolStarted | ToolFinished | Answer
"""What a streamed run says: `Started` first, the `Answer` last; a failure is raised instead."""


def new_run_id() -> str:
    """A fresh identity of a run: 32 hexadecimal digits, unguessable."""
    return new_id()
