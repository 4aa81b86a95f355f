"""Agents from Python code: `package.module:attribute`, an existing Pydantic AI `Agent` with its tools."""

import difflib
import logging
import traceback
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, cast

from pydantic import ValidationError
from pydantic_ai import Agent, UserError
from pydantic_ai.models import Model

from app.core.agent_options import AgentOptions
from app.core.agents import AgentDefinition, AnyAgent
from app.errors import BadConfiguration

_log = logging.getLogger(__name__)


def load_agent(reference: str, *, default_model: str) -> AgentDefinition:
    """The agent at `package.module:attribute`. Raises `BadConfiguration` that says what to change.

    Its name is the agent's own, else the attribute's. `<attribute>_deps` beside it, where it exists, makes the
    dependencies of each run. An agent without a model, or with one by name only (`defer_model_check=True`), gets
    Mnemosine's model; one that was built with a model object keeps it.
    """
    module_name, _, attribute = reference.partition(":")
    module = _import(reference, module_name)
    owner: Any = module
    *path, last = attribute.split(".")
    for step in path:
        owner = getattr(owner, step, None)
    agent = getattr(owner, last, None)
    if not isinstance(agent, Agent):
        agents = [name for name, value in vars(module).items() if isinstance(value, Agent)]
        close = difflib.get_close_matches(attribute, agents, n=1) or agents[:1]
        cure = f"did you mean {module_name}:{close[0]}?" if close else f"there is none in {module_name}"
        raise BadConfiguration(f"AGENTS: {reference} is not a Pydantic AI Agent; {cure}")
    agent = cast("AnyAgent", agent)
    deps = getattr(owner, f"{last}_deps", None)
    if deps is not None and not callable(deps):
        raise BadConfiguration(f"AGENTS: {module_name}:{attribute}_deps must be a function that makes dependencies")
    # `object` is what Pydantic AI says of an agent that named no type.
    if deps is None and agent.deps_type not in (None, NoneType, object):
        _log.warning(
            "AGENTS: %s wants dependencies (%s), and there is no %s_deps beside it to make them; its runs get None",
            *(reference, getattr(agent.deps_type, "__name__", agent.deps_type), last),
        )
    model = agent.model
    metadata: object = agent._metadata  # pyright: ignore[reportPrivateUsage] - there is no public reader
    ours = cast("dict[str, Any]", metadata).get("mnemosine") if isinstance(metadata, dict) else None
    try:
        options = AgentOptions.model_validate(ours or {})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(("metadata", "mnemosine", *map(str, fault["loc"])))
        raise BadConfiguration(f"AGENTS: {reference}: {name}: {fault['msg']}") from error
    try:
        return AgentDefinition(
            name=agent.name or last,
            model=model.model_id if isinstance(model, Model) else model or default_model,
            description=str(agent.description or ""),
            instructions=_instructions_of(agent),
            options=options,
            source=f"AGENTS={reference}",
            prototype=agent,
            own_model=model if isinstance(model, Model) else None,
            deps=deps,
            fingerprint=(reference, _digest(module), agent.model_settings),
        )
    except (UserError, ValueError, TypeError) as error:
        raise BadConfiguration(f"AGENTS: {reference}: {' '.join(str(error).split())}") from error


def _instructions_of(agent: AnyAgent) -> str | None:
    """What every run is told, joined as Pydantic AI joins it; `None` where there is nothing, or some is computed."""
    # There is no public reader.
    parts = [part.instruction for part in agent._instructions]  # pyright: ignore[reportPrivateUsage]
    texts = [part.strip() for part in parts if isinstance(part, str)]
    return "\n\n".join(filter(None, texts)) or None if len(texts) == len(parts) else None


def _import(reference: str, name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if name.endswith(".py"):
            raise BadConfiguration(
                f"AGENTS: {reference}: a module is named without .py: {reference.replace('.py:', ':')}"
            ) from error
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise BadConfiguration(
                f"AGENTS: {reference}: there is no module {error.name!r}; install it, or start in its folder"
            ) from error
        raise BadConfiguration(f"AGENTS: {reference}: it needs {error.name!r}, which is not installed") from error
    except Exception as error:
        # Foreign code may raise anything; the last frame outside of installed packages is the line to mend.
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((frame for frame in reversed(frames) if "site-packages" not in frame.filename), frames[-1])
        raise BadConfiguration(
            f"AGENTS: {reference} cannot be imported: {frame.filename}, line {frame.lineno}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


def _digest(module: ModuleType) -> str:
    source = Path(module.__file__ or "")
    return sha256(source.read_bytes()).hexdigest() if source.is_file() else module.__name__
