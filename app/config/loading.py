"""Where the settings come from: the command line, the environment, and `.env`; and the one line that refuses them."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import SettingsError

from app.config.settings import Settings, example_of
from app.errors import BadConfiguration
from app.logs import redact

# Which provider answers when nobody chose a model: the first whose key is there.
_PROVIDER_DEFAULTS = (
    ("OPENAI_API_KEY", "openai-chat:gpt-5-mini"),
    ("ANTHROPIC_API_KEY", "anthropic:claude-sonnet-4-5"),
)
# Names that belong to others and look like ours.
_NOT_OURS = frozenset({"LOG_FILE", "HOSTNAME", "HOSTS"})


def load_settings(env_file: str | Path | None = ".env", **overrides: Any) -> Settings:
    """The settings from `overrides` (lower-case names; None means not given), the environment, then `env_file`.

    A missing `.env` is nothing special; any other `env_file` must exist; None reads none. Raises `BadConfiguration`
    with one line that names the setting, what is wrong with it, and a valid example. Never echoes a secret.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if unknown := given.keys() - Settings.model_fields.keys():
        raise BadConfiguration(f"{min(unknown).upper()} is not a setting; `mnemosine check-config` lists them all")
    file_values = _read_env_file(env_file)
    surroundings = {**file_values, **{name: value for name, value in os.environ.items() if value}}
    upper = {name.upper(): value for name, value in surroundings.items()}

    chosen_by = None
    if "default_model" not in given and "DEFAULT_MODEL" not in upper:
        for key, model in _PROVIDER_DEFAULTS:
            if key in upper:
                given["default_model"] = model
                chosen_by = f"default, as {key} is set"
                break
    arguments: dict[str, Any] = {**given, "_env_file": env_file if file_values else None}
    try:
        settings = Settings(**arguments)
    except ValidationError as error:
        raise BadConfiguration(_first_fault(error)) from None
    except SettingsError as error:
        raise BadConfiguration(_one_line(str(error))) from None

    origins = _origins_of(given, file_values, env_file)
    if chosen_by is not None:
        origins["default_model"] = chosen_by
    settings._origins = origins  # pyright: ignore[reportPrivateUsage] - made here, frozen from here on
    settings._warnings = (*_near_misses(file_values, env_file), *_exposure(settings))  # pyright: ignore[reportPrivateUsage]
    return settings


def export_foreign_variables(env_file: str | Path | None = ".env") -> tuple[str, ...]:
    """Put the lines of `env_file` that are no settings of ours into the environment; returns their names.

    Provider keys and base URLs keep their providers' names (`OPENAI_API_KEY`, …), and the providers' libraries look
    for them in the environment. What is set there already wins. Called by whoever starts the process.
    """
    ours = {name.upper() for name in Settings.model_fields}
    exported: list[str] = []
    for name, value in _read_env_file(env_file).items():
        if name.upper() not in ours and not os.environ.get(name):
            os.environ[name] = value
            exported.append(name)
    return tuple(exported)


def _read_env_file(env_file: str | Path | None) -> dict[str, str]:
    if env_file is None:
        return {}
    path = Path(env_file)
    try:
        if not path.is_file():
            if path == Path(".env"):
                return {}
            raise BadConfiguration(f"the settings file {path} does not exist; example: --env-file .env")
        values = dotenv_values(path, encoding="utf-8")
    except OSError as error:
        raise BadConfiguration(f"the settings file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadConfiguration(f"the settings file {path} is not UTF-8 text") from error
    return {name: value for name, value in values.items() if value}


def _origins_of(
    given: Mapping[str, object], file_values: Mapping[str, str], env_file: str | Path | None
) -> dict[str, str]:
    environment = {name.lower() for name, value in os.environ.items() if value}
    in_file = {name.lower() for name in file_values}
    origins: dict[str, str] = {}
    for name in Settings.model_fields:
        if name in given:
            origins[name] = "command line"
        elif name in environment:
            origins[name] = "environment"
        elif name in in_file:
            origins[name] = str(env_file)
    return origins


def _near_misses(file_values: Mapping[str, str], env_file: str | Path | None) -> list[str]:
    ours = [name.upper() for name in Settings.model_fields]
    lines: list[str] = []
    for name in file_values:
        if name.upper() in ours or name.upper() in _NOT_OURS:
            continue
        if close := difflib.get_close_matches(name.upper(), ours, n=1, cutoff=0.82):
            lines.append(f"{env_file}: {name} is not a setting and has no effect; did you mean {close[0]}?")
    return lines


def _exposure(settings: Settings) -> list[str]:
    if settings.is_loopback or settings.trusted_proxies:
        return []
    line = (
        f"HOST={settings.host} is reachable from other machines, and no proxy is declared: passwords and keys would "
        "travel unencrypted. Put a TLS proxy in front and name it, for example TRUSTED_PROXIES=127.0.0.1"
    )
    return [line]


def _first_fault(error: ValidationError) -> str:
    # DATABASE_URL's default is not computed when a field before it is wrong; that is no fault of its own.
    faults = [
        fault
        for fault in error.errors(include_url=False, include_context=False, include_input=True)
        if fault["type"] != "default_factory_not_called"
    ]
    fault = faults[0]
    problem = _one_line(fault["msg"].removeprefix("Value error, "))
    if not fault["loc"]:
        return problem
    name = str(fault["loc"][0])
    field = Settings.model_fields[name]
    problem = problem[:1].lower() + problem[1:]
    problem = problem.replace("input should be ", "must be ").partition(", unable to ")[0]
    if problem.startswith("value should have "):
        problem = "must have " + problem.removeprefix("value should have ")
    if problem.startswith("string should "):
        problem = "must " + problem.removeprefix("string should ")
    got = ""
    if field.repr and "SecretStr" not in str(field.annotation):
        given: object = fault.get("input")
        listed = ",".join(map(str, cast("tuple[object, ...]", given))) if isinstance(given, tuple) else str(given)
        shown = redact(_one_line(listed))
        got = f", got {shown[:40]!r}" + ("…" if len(shown) > 40 else "")
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{name.upper()} {problem}{got}; example: {name.upper()}={example_of(name)}{more}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
