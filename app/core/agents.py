"""What an agent is: its name, its instructions, its model, and a revision that changes when any of them does."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic_ai import Agent, ModelSettings
from pydantic_ai import __version__ as pydantic_ai_version
from pydantic_ai.models import Model
from pydantic_core import to_json

from app.errors import NotFound

AnyAgent = Agent[Any, Any]


@dataclass(frozen=True, slots=True)
class AgentDefinition:
    """An agent as configured. It is cheap and immutable; what is alive stands in the pool."""

    name: str
    model: str
    """A model name; a run may take another one where the operator allows it."""
    description: str = ""
    instructions: str | None = None
    settings: ModelSettings | None = None

    @property
    def revision(self) -> str:
        """16 hexadecimal digits over all that determines an answer, the library's version included."""
        parts = (self.name, self.model, self.instructions, self.settings, pydantic_ai_version)
        return sha256(to_json(parts)).hexdigest()[:16]

    def build(self, model: Model[Any]) -> AnyAgent:
        """A live agent on `model`; costs about 0.2 ms and opens nothing."""
        return Agent(
            model,
            name=self.name,
            instructions=self.instructions,
            model_settings=self.settings,
        )


class Agents:
    """The agents that this server knows, by name; `default` is always among them."""

    def __init__(self, definitions: Iterable[AgentDefinition], *, default_model: str) -> None:
        self._by_name = {definition.name: definition for definition in definitions}
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

    def get(self, name: str) -> AgentDefinition:
        """The agent of this name. Raises `NotFound`, which lists the names that exist."""
        definition = self._by_name.get(name)
        if definition is None:
            raise NotFound(f"there is no agent {name!r}; there are: {', '.join(sorted(self._by_name))}")
        return definition
