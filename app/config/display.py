"""The settings as an operator sees them: what is in effect, and the text of `.env.example`."""

import ast
import inspect
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.config.settings import Settings, example_of

_MASK = "********"


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of `mnemosine check-config`: `value` is safe to show."""

    name: str
    value: str
    origin: str


def describe(settings: Settings) -> list[SettingRow]:
    """Every setting with its effective value, secrets and passwords in URLs masked, and where the value came from."""
    return [
        SettingRow(name.upper(), _shown(getattr(settings, name)), settings.origins.get(name, "default"))
        for name in Settings.model_fields
    ]


def example_env() -> str:
    """The text of `.env.example`: every setting with its meaning and bounds, commented out at its default."""
    lines = [
        "# The settings of Mnemosine. Copy to .env, uncomment what you change; the environment wins over the file.",
        "# Written by `mnemosine check-config --example`; a test keeps it equal to app/config.",
    ]
    meaning = meanings()
    for name, field in Settings.model_fields.items():
        lines += ["", *_wrapped(f"{meaning[name]} {_bounds(field.metadata)}".strip())]
        default = field.get_default()
        value = _shown(default) if default not in (None, ()) and field.default_factory is None else ""
        if value:
            lines.append(f"#{name.upper()}={value}")
        else:
            lines.append(f"#{name.upper()}=          # example: {example_of(name)}")
    lines += [
        "",
        "# Provider keys and base URLs keep their providers' own names, for example:",
        "#OPENAI_API_KEY=",
        "#OPENAI_BASE_URL=",
        "#ANTHROPIC_API_KEY=",
    ]
    return "\n".join(lines) + "\n"


def meanings() -> dict[str, str]:
    """What stands below each field of `Settings`, by the field's name.

    Read from the source when somebody asks. Pydantic would read it at every start, which took 26 ms of CPU.
    """
    (settings,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(settings, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in pairwise(settings.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                found[name] = inspect.cleandoc(text)
            case _:
                pass
    return found


def mask_url(url: str) -> str:
    """`url` with its password masked, whatever else is wrong with it."""
    # Greedy: a password with an unescaped slash or at-sign is wrong, and still must not show.
    masked = re.sub(r"^([^:/?#]+://[^:/?#@]*):.*@", rf"\1:{_MASK}@", url)
    return re.sub(r"([?&](?:password|passwd|token|secret)=)[^&#]*", rf"\1{_MASK}", masked, flags=re.IGNORECASE)


def _shown(value: object) -> str:
    match value:
        case None:
            return ""
        case SecretStr():
            return _MASK
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(str(item) for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case float():
            return f"{value:g}"
        case Path():
            return str(value)
        case _:
            return mask_url(str(value))


def _bounds(metadata: list[Any]) -> str:
    low = next((f"{item.ge:,}" for item in metadata if hasattr(item, "ge")), None)
    above = next((f"{item.gt:,}" for item in metadata if hasattr(item, "gt")), None)
    high = next((f"{item.le:,}" for item in metadata if hasattr(item, "le")), None)
    if low is not None and high is not None:
        return f"[{low} to {high}]"
    return f"[more than {above}, up to {high}]" if above is not None and high is not None else ""


def _wrapped(text: str, *, width: int = 118) -> list[str]:
    lines = ["#"]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > width:
            lines.append("#")
        lines[-1] += f" {word}"
    return lines
