"""A run: what was asked, what came of it. The words that every room shares."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal
from uuid import uuid4

CacheMode = Literal["use", "refresh", "off"]
"""`use`: read and store; `refresh`: run, then store; `off`: neither."""

CacheState = Literal["HIT", "MISS", "COALESCED", "REFRESH", "BYPASS"]
"""How the cache took part in an answer; the value of `X-Cache`."""

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

    @property
    def is_admin(self) -> bool:
        """Whether the caller may administer users, caches and settings."""
        return self.role == "admin"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a caller may change about one run; `None` leaves it to the agent."""

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, readable by any room; nothing in it comes from HTTP."""

    message: str
    agent: str = "default"
    model: str | None = None
    """Another model than the agent's own; must be one that the operator allows."""
    conversation_id: str | None = None
    settings: RunSettings = field(default_factory=RunSettings)
    cache_mode: CacheMode = "use"
    cache_ttl_s: float | None = None


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
    """Whether the cache may keep it: complete, and no tool was called."""
    age_s: float = 0.0
    """Seconds since a kept answer was stored."""
    ttl_s: float | None = None
    """Seconds that it stays in the cache; `None` where it is not kept."""


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


RunEvent = TextDelta | ToolStarted | ToolFinished | Answer
"""What a streamed run says; the last event is always the `Answer`, and a failure is raised instead."""


def new_run_id() -> str:
    """A fresh identity of a run: 32 hexadecimal digits, unguessable."""
    return uuid4().hex
