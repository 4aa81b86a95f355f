"""Writes the reference pages that follow from the code, and puts together what the site is built of.

`python -m docs.generate` is part of `make docs`; with a folder, the sources of the site are put there.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from app.cli import cli
from app.config import Settings, load_settings, meanings
from app.main import create_app

HERE = Path(__file__).parent / "reference"
SITE = ("README.md", "ARCHITECTURE.md", "CONVENTIONS.md", "CHANGELOG.md", "docs", "examples", "benchmarks", "deploy")


def settings_page() -> str:
    """Every setting with its meaning, default and an example."""
    lines = [
        "# Settings",
        "",
        "From the environment, or from `.env` in the folder where the server starts; the environment wins, and",
        "the command line wins over both. `mnemosine check-config` shows what is in effect. A bad setting stops",
        "the start with one line.",
        "",
        "Keys and addresses of providers keep their providers' own names: [providers](../howto/providers.md).",
        "",
    ]
    meaning = meanings()
    for name, field in Settings.model_fields.items():
        default = None if field.default_factory is not None else field.get_default()
        shown = (
            "unset" if default in (None, ()) else str(default).lower() if isinstance(default, bool) else str(default)
        )
        example = (field.examples or [""])[0]
        lines += [
            f"## {name.upper()}",
            "",
            meaning[name],
            "",
            f"Default: `{shown}`. Example: `{example}`.",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def commands_page() -> str:
    """What every command says of itself."""
    lines = [
        "# The command line",
        "",
        "`mnemosine`, or `python -m app`. Exit status: 0 all is well; 1 it failed, and one line on standard error",
        "says why; 2 a setting or an argument is wrong; 130 a prompt through a pipe was ended by Ctrl-C. `NO_COLOR` is",
        "obeyed.",
        "",
    ]
    for path, command in walk(cli, ("mnemosine",)):
        if isinstance(command, click.Group):
            continue
        context: click.Context | None = None
        for name in path[:-1]:
            context = click.Context(cli, info_name=name, parent=context)
        own = click.Context(command, info_name=path[-1], parent=context, terminal_width=100, max_content_width=100)
        lines += [f"## {' '.join(path)}", "", "```text", command.get_help(own), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def walk(command: click.Command, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    """`command` and all below it, each with the words that call it."""
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            found += walk(command.commands[name], (*path, name))
    return found


def routes_page(document: dict[str, Any]) -> str:
    """Every route of the OpenAPI document, with its fields and statuses."""
    lines = [
        "# HTTP API",
        "",
        "Every route, from the OpenAPI document (`/openapi.json`; `/docs` shows it in a browser). Times are in",
        "milliseconds where a name ends in `_ms`, in seconds where it ends in `_seconds`. Failures are",
        "[errors](errors.md).",
        "",
    ]
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            lines += [f"## {method.upper()} {path}", ""]
            if text := route.get("description") or route.get("summary"):
                lines += [" ".join(str(text).split()), ""]
            for kind, content in (("Body", route.get("requestBody", {}).get("content", {})), *_answers(route)):
                for schema in (media.get("schema", {}) for media in content.values()):
                    if fields := _fields(schema, document):
                        lines += [f"{kind}:", "", *fields, ""]
            parameters = [f"`{item['name']}` ({item['in']})" for item in route.get("parameters", [])]
            if parameters:
                lines += [f"Parameters: {', '.join(parameters)}.", ""]
            lines += [f"Statuses: {', '.join(sorted(route.get('responses', {})))}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def openapi() -> dict[str, Any]:
    """The OpenAPI document as a server gives it."""
    with tempfile.TemporaryDirectory() as folder:
        return create_app(load_settings(None, data_dir=Path(folder))).api.openapi()


def _answers(route: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = route.get("responses", {}).items()
    return [(f"Answer ({status})", reply.get("content", {})) for status, reply in found if status.startswith("2")]


def _fields(schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if schema.get("type") == "array":
        return _fields(schema["items"], document)
    required = schema.get("required", [])
    return [
        f"- `{name}`{' (required)' if name in required else ''}: {_kind(value)}"
        for name, value in schema.get("properties", {}).items()
    ]


def _kind(schema: dict[str, Any]) -> str:
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_kind(option) for option in options)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))


def put_together(target: Path) -> None:
    """Copy to `target`, made anew, the pages and the files beside docs/ that they link to, with their paths kept."""
    shutil.rmtree(target, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__", ".*", "data", "generate.py", "loads.py")
    for name in SITE:
        source = HERE.parent.parent / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=unwanted)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def main() -> None:
    """Write the pages."""
    (HERE / "settings.md").write_text(settings_page(), encoding="utf-8")
    (HERE / "cli.md").write_text(commands_page(), encoding="utf-8")
    (HERE / "http.md").write_text(routes_page(openapi()), encoding="utf-8")
    if len(sys.argv) > 1:
        put_together(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
