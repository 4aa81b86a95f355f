"""Agents from files: AgentSpec in YAML or JSON, read strictly, so that a mistake names its file, line and cure."""

import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_ai import Agent, ModelSettings
from pydantic_ai.agent.spec import AgentSpec
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model

from app.core.agent_options import AgentOptions, ModelName
from app.core.agents import AgentDefinition, AnyAgent
from app.errors import BadConfiguration

HARMLESS_CAPABILITIES = frozenset(
    {
        "Caching",
        "Citations",
        "IncludeToolReturnSchemas",
        "PrefixTools",
        "RaiseContentFilterError",
        "ReinjectSystemPrompt",
        "SetToolMetadata",
        "Thinking",
        "ToolSearch",
    }
)
"""They change what is said to the model and nothing else. Any other reaches the host, the network or a provider's
own tools, and needs its name in ALLOWED_CAPABILITIES; an MCP server started by a command needs `MCP:command`."""

MAX_FILE_BYTES = 1_000_000
_KEYS = {field.alias or name for name, field in AgentSpec.model_fields.items()}
_Lines = dict[tuple[str | int, ...], int]


def read_agent_files(
    folder: Path, *, default_model: str, allowed_capabilities: Collection[str] = ()
) -> list[AgentDefinition]:
    """Every agent in `folder` (`*.yaml`, `*.yml`, `*.json`; not its subfolders), by name.

    Raises `BadConfiguration` with file, line and cure at the first one that is broken.
    """
    if not folder.is_dir():
        raise BadConfiguration(f"AGENTS_DIR {folder} is not a folder; example: AGENTS_DIR=./agents")
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml", ".json") and path.is_file())
    return [
        _read(path, default_model, frozenset(allowed_capabilities))
        for path in paths
        if not path.name.endswith("schema.json")
    ]


def schema() -> dict[str, Any]:
    """The JSON schema of an agent file, our metadata included, for editors."""
    whole = AgentSpec.model_json_schema_with_capabilities()
    ours = AgentOptions.model_json_schema(ref_template="#/$defs/{model}")
    whole.setdefault("$defs", {}).update(ours.pop("$defs", {}))
    whole["$defs"]["AgentOptions"] = ours
    whole["properties"]["metadata"] = {
        "type": "object",
        "properties": {"mnemosine": {"$ref": "#/$defs/AgentOptions"}},
        "additionalProperties": True,
    }
    return whole


class _File:
    """One file while it is read: knows the line of everything in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: _Lines = {}
        self.data = self._parse()

    def refuse(self, problem: str, *where: str | int) -> NoReturn:
        place = where
        while place and place not in self.lines:
            place = place[:-1]
        raise BadConfiguration(f"{self.path}, line {self.lines.get(place, 1)}: {problem}")

    def _parse(self) -> dict[str, Any]:
        try:
            if self.path.stat().st_size > MAX_FILE_BYTES:
                self.refuse(f"an agent file may have {MAX_FILE_BYTES:,} bytes; shorten it")
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadConfiguration(f"{self.path} cannot be read as UTF-8 text: {error}") from error
        data: object
        try:
            data = json.loads(text) if self.path.suffix == ".json" else None
            # PyYAML carries no types.
            node = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
            if node is not None:
                self._mark(node, ())
            if self.path.suffix != ".json":
                data = yaml.safe_load(text)
        except json.JSONDecodeError as error:
            raise BadConfiguration(f"{self.path}, line {error.lineno}: this is not JSON: {error.msg}") from error
        except yaml.MarkedYAMLError as error:
            line = (error.problem_mark.line if error.problem_mark else 0) + 1
            raise BadConfiguration(
                f"{self.path}, line {line}: this is not YAML: {error.problem}; check indentation, and quote texts "
                "that hold a colon"
            ) from error
        except yaml.YAMLError as error:
            raise BadConfiguration(f"{self.path}: this is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(data, dict):
            self.refuse("an agent file must hold keys and values; example: instructions: Answer briefly.")
        return cast("dict[str, Any]", data)

    def _mark(self, node: yaml.Node, where: tuple[str | int, ...]) -> None:
        self.lines[where] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*where, str(key.value))
                if place in self.lines:
                    raise BadConfiguration(
                        f"{self.path}, line {key.start_mark.line + 1}: {key.value!r} stands twice; remove one"
                    )
                self._mark(value, place)
                self.lines[place] = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._mark(item, (*where, index))


def _read(path: Path, default_model: str, allowed: frozenset[str]) -> AgentDefinition:
    file = _File(path)
    for key in file.data:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            cure = f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(sorted(_KEYS))}"
            file.refuse(f"{key!r} is not a key of an agent; {cure}", str(key))
    try:
        spec = AgentSpec.model_validate(file.data)
        TypeAdapter(ModelSettings).validate_python(spec.model_settings or {})
    except ValidationError as error:
        _refuse(file, error, () if error.title == "AgentSpec" else ("model_settings",))
    except (ImportError, UserError) as error:
        file.refuse(str(error).partition("\n")[0])
    _check_settings(file, spec.model_settings or {})
    try:
        options = AgentOptions.model_validate((spec.metadata or {}).get("mnemosine") or {})
    except ValidationError as error:
        _refuse(file, error, ("metadata", "mnemosine"))
    model = spec.model or default_model
    try:
        TypeAdapter[str](ModelName).validate_python(model)
    except ValidationError:
        file.refuse(f"model {model!r} must be `offline` or provider:model, as openai-chat:gpt-5-mini", "model")
    raw: list[Any] = file.data.get("capabilities") or []
    for index, capability in enumerate(raw):
        _check_capability(file, capability, allowed, "capabilities", index)

    # What is ours stays here: metadata on an agent is carried by each of its runs.
    others = {key: value for key, value in (spec.metadata or {}).items() if key != "mnemosine"}
    served = spec.model_copy(update={"metadata": others or None})

    def make(live: Model[Any] | None) -> AnyAgent:
        return Agent.from_spec(served, model=live, name=path.stem, defer_model_check=True)

    try:
        prototype = make(None)
        return AgentDefinition(
            name=path.stem,
            model=model,
            description=str(spec.description or ""),
            instructions=spec.instructions if isinstance(spec.instructions, str) else None,
            options=options,
            source=str(path),
            prototype=prototype,
            make=make,
            fingerprint={key: value for key, value in file.data.items() if key != "metadata"},
        )
    except (UserError, ValueError, TypeError, ImportError) as error:
        where = "capabilities" if "apability" in str(error) else "output_schema"
        file.refuse(" ".join(str(error).split())[:300], where)


def _refuse(file: _File, error: ValidationError, before: tuple[str | int, ...]) -> NoReturn:
    fault = error.errors(include_url=False, include_context=False)[0]
    where = (*before, *fault["loc"])
    name = ".".join(str(step) for step in where)
    file.refuse(f"{name}: {fault['msg']}, got {str(fault['input'])[:60]!r}", *where)


def _check_settings(file: _File, settings: Mapping[str, Any]) -> None:
    known = set(ModelSettings.__annotations__)
    for key in settings:
        # A provider's own settings carry its name: openai_reasoning_effort.
        if key not in known and (close := difflib.get_close_matches(key, known, n=1, cutoff=0.8)):
            file.refuse(f"{key!r} is not a model setting; did you mean {close[0]!r}?", "model_settings", key)


def _check_capability(file: _File, raw: object, allowed: frozenset[str], *where: str | int) -> None:
    body = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}
    arguments: Any
    if isinstance(raw, str):
        name, arguments = raw, None
    elif "name" in body and "arguments" in body:
        name, arguments = str(body["name"]), body["arguments"]
    elif len(body) == 1:
        name, arguments = next(iter(body.items()))
    else:
        file.refuse("a capability is a name, or one name with its arguments", *where)
    options = cast("dict[str, Any]", arguments) if isinstance(arguments, dict) else {}
    needed = name
    if name == "MCP" and (options.get("local") not in (None, True, False) or _is_command(cast("object", arguments))):
        needed = "MCP:command"
    if needed not in HARMLESS_CAPABILITIES and needed not in allowed:
        file.refuse(
            f"the capability {needed!r} reaches beyond the model and is not allowed; "
            f"if you mean it, set ALLOWED_CAPABILITIES={needed}",
            *where,
        )
    if "capability" in options:
        _check_capability(file, options["capability"], allowed, *where)


def _is_command(arguments: Any) -> bool:
    items = cast("list[object]", arguments) if isinstance(arguments, list | tuple) else [arguments]
    return any(isinstance(item, str) and not item.startswith(("http://", "https://")) for item in items)
