"""What an agent is: its name, its model, what its tools do, and a revision that changes when any of that does."""

import difflib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from inspect import isawaitable, signature
from typing import Any, cast

from pydantic_ai import Agent, ModelSettings, UserError
from pydantic_ai import __version__ as pydantic_ai_version
from pydantic_ai.models import Model
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import (
    AbstractToolset,
    CombinedToolset,
    FunctionToolset,
    PrefixedToolset,
    RenamedToolset,
    WrapperToolset,
)
from pydantic_core import to_json

from app.core.agent_options import AgentOptions, Effect
from app.core.run import Caller
from app.errors import BadConfiguration, NotFound

AnyAgent = Agent[Any, Any]
DepsFactory = Callable[..., Any]
"""Makes the dependencies of one run: takes nothing or the `Caller`; may be async or an async context manager."""

NO_OPTIONS = AgentOptions()
_SEVERITY: dict[Effect, int] = {"pure": 0, "read": 1, "write": 2}


@dataclass(frozen=True, slots=True)
class ToolFacts:
    """A tool as far as it is known before a run."""

    name: str
    effect: Effect
    declared: bool
    """Whether somebody said so, or it is `write` for want of a declaration."""
    shape: object = field(repr=False, compare=False, default=None)


@dataclass(frozen=True, slots=True, eq=False)
class AgentDefinition:
    """An agent as configured. It is cheap and immutable; what is alive stands in the pool."""

    name: str
    model: str
    """A model name; a run may take another one where the operator allows it."""
    description: str = ""
    instructions: str | None = None
    settings: ModelSettings | None = None
    options: AgentOptions = NO_OPTIONS
    source: str = "built in"
    """Where it was defined, as the operator would say it."""
    prototype: AnyAgent | None = None
    """The agent object; `None` makes one of `instructions` and `settings`."""
    make: Callable[[Model[Any]], AnyAgent] | None = None
    """Makes a live agent on a model; `None` where the prototype itself serves every run."""
    own_model: Model[Any] | None = None
    """The model object that a Python agent was built with; it takes no other unless a prompt names one."""
    deps: DepsFactory | None = None
    fingerprint: object = None
    """What else determines an answer: a file's content, a module's digest."""
    tools: tuple[ToolFacts, ...] = field(init=False)
    open_tools: bool = field(init=False)
    """Whether further tools become known only in a run (MCP, dynamic toolsets)."""
    revision: str = field(init=False)
    """16 hexadecimal digits over all that determines an answer, the library's version included."""

    def __post_init__(self) -> None:
        agent = self.prototype
        if agent is None:
            agent = Agent(None, name=self.name, instructions=self.instructions, model_settings=self.settings)
            object.__setattr__(self, "prototype", agent)
            if self.make is None:
                object.__setattr__(self, "make", self._plain)
        tools, is_open = _tools_of(agent.toolsets, self.options)
        object.__setattr__(self, "tools", tools)
        object.__setattr__(self, "open_tools", is_open)
        parts = (
            (self.name, self.model, self.instructions, self.settings, self.fingerprint, pydantic_ai_version),
            [(tool.name, tool.effect, tool.shape) for tool in tools],
            (self.options.fallbacks, self.options.effects, self.options.cache.scope),
            self.output_schema,
        )
        digest = sha256(to_json(parts, fallback=repr)).hexdigest()[:16]
        object.__setattr__(self, "revision", digest)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """The models after `model`, in the order in which they are asked."""
        return self.options.fallbacks

    @property
    def output_schema(self) -> dict[str, Any]:
        """JSON schema of what a run gives; of a text agent, that of a string."""
        assert self.prototype is not None
        return self.prototype.output_json_schema()

    def effect_of(self, called: Iterable[str]) -> Effect:
        """The worst that calling these tools does; a tool that nobody declared counts as `write`."""
        known: dict[str, Effect] = {}
        for tool in self.tools:
            known[tool.name] = tool.effect
        known.update(self.options.effects)
        worst: Effect = "pure"
        for name in called:
            effect = known.get(name, "write")
            if _SEVERITY[effect] > _SEVERITY[worst]:
                worst = effect
        return worst

    def build(self, model: Model[Any]) -> AnyAgent:
        """A live agent; costs under a millisecond and opens nothing. Run it with `model=` where it is shared."""
        assert self.prototype is not None
        return self.prototype if self.make is None else self.make(model)

    @asynccontextmanager
    async def open_deps(self, caller: Caller) -> AsyncGenerator[Any]:
        """The dependencies of one run, for the length of the block; `None` for an agent that has none."""
        if self.deps is None:
            yield None
            return
        made = self.deps(caller) if signature(self.deps).parameters else self.deps()
        if isinstance(made, AbstractAsyncContextManager):
            async with cast("AbstractAsyncContextManager[Any]", made) as deps:
                yield deps
        else:
            yield await made if isawaitable(made) else made

    def _plain(self, model: Model[Any]) -> AnyAgent:
        return Agent(model, name=self.name, instructions=self.instructions, model_settings=self.settings)


class Agents:
    """The agents that this server knows, by name; `default` is always among them."""

    def __init__(self, definitions: Iterable[AgentDefinition], *, default_model: str) -> None:
        self.version = 0
        """Another number after every `replace`."""
        self._by_name: dict[str, AgentDefinition] = {}
        for definition in definitions:
            if (other := self._by_name.get(definition.name)) is not None:
                raise BadConfiguration(
                    f"two agents are called {definition.name!r}: {other.source} and {definition.source}; rename one"
                )
            self._by_name[definition.name] = definition
        self._by_name.setdefault(
            "default",
            AgentDefinition(
                name="default",
                model=default_model,
                description="A plain assistant on the default model.",
            ),
        )

    def __iter__(self) -> Iterator[AgentDefinition]:
        return iter(self._by_name.values())

    def replace(self, other: "Agents") -> None:
        """Take over the agents of `other`, all at once."""
        self._by_name = other._by_name
        self.version += 1

    def of(self, caller: Caller) -> list[AgentDefinition]:
        """The agents that exist for `caller`, by name."""
        return [agent for name, agent in sorted(self._by_name.items()) if caller.may_use(name)]

    def get(self, name: str, caller: Caller) -> AgentDefinition:
        """The agent of this name. Raises `NotFound`, which lists the names that exist for `caller`."""
        definition = self._by_name.get(name)
        if definition is None or not caller.may_use(name):
            names = [agent.name for agent in self.of(caller)]
            there_are = ", ".join(names) or "none for this API key"
            raise NotFound(f"there is no agent {name!r}; {did_you_mean(name, names)}there are: {there_are}")
        return definition


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`did you mean 'x'? ` where one of `names` is near to `name`, else nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _tools_of(toolsets: Iterable[AbstractToolset[Any]], options: AgentOptions) -> tuple[tuple[ToolFacts, ...], bool]:
    found: dict[str, ToolFacts] = {}
    is_open = False
    for toolset in toolsets:
        tools, more = _inside(toolset)
        found |= tools
        is_open = is_open or more
    for name, effect in options.effects.items():
        found[name] = ToolFacts(name, effect, True, found[name].shape if name in found else None)
    return tuple(found.values()), is_open


def _inside(toolset: AbstractToolset[Any]) -> tuple[dict[str, ToolFacts], bool]:
    match toolset:
        case FunctionToolset():
            return {name: _facts(tool.tool_def) for name, tool in toolset.tools.items()}, False
        case CombinedToolset():
            parts = [_inside(part) for part in toolset.toolsets]
            merged = {name: facts for tools, _ in parts for name, facts in tools.items()}
            return merged, any(more for _, more in parts)
        case PrefixedToolset():
            tools, more = _inside(toolset.wrapped)
            return {
                f"{toolset.prefix}_{name}": _renamed(facts, f"{toolset.prefix}_{name}") for name, facts in tools.items()
            }, more
        case RenamedToolset():
            tools, more = _inside(toolset.wrapped)
            new = {old: name for name, old in toolset.name_map.items()}
            return {new.get(name, name): _renamed(facts, new.get(name, name)) for name, facts in tools.items()}, more
        case WrapperToolset():
            return _inside(toolset.wrapped)
        case _:
            # MCP, dynamic and foreign toolsets: their tools are known in the run.
            return {}, True


def _renamed(facts: ToolFacts, name: str) -> ToolFacts:
    return ToolFacts(name, facts.effect, facts.declared, facts.shape)


def _facts(tool: ToolDefinition) -> ToolFacts:
    declared = (tool.metadata or {}).get("effect")
    if declared not in (None, "pure", "read", "write"):
        raise UserError(f"the tool {tool.name!r} declares effect {declared!r}; valid: pure, read, write")
    shape = (tool.description, tool.parameters_json_schema, tool.strict)
    return ToolFacts(tool.name, declared or "write", declared is not None, shape)
