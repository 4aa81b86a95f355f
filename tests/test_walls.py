"""The walls of the house, read off the syntax trees: who may import whom, and that importing starts nothing."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
APP = ROOT / "app"

# A room may import the rooms that its line names, and itself. The order is that of ARCHITECTURE.md.
MAY_IMPORT = {
    "main": {"api", "runtime", "installation", "config", "logs", "errors"},
    "api": {"runtime", "agent_room", "core", "logs", "tracing", "errors"},
    "runtime": {"installation", "agent_room", "config", "core", "stores", "db", "logs", "tracing", "errors"},
    "installation": {"agent_room", "config", "core", "db"},
    "agent_room": {"config", "core", "tracing", "errors"},
    "doctor": {"config", "core", "stores", "db", "errors"},
    "core": {"stores", "db", "logs", "tracing", "errors"},
    "stores": {"errors"},
    "db": {"tracing", "errors"},
    "config": {"logs", "errors"},
    "logs": set[str](),
    "tracing": {"errors"},
    "errors": set[str](),
}
# Where foreign libraries may be imported. `cli`, `commands`, `server` and `bench` are outside: they start the house.
HOME_OF = {
    "fastapi": {"main", "api"},
    "starlette": {"main", "api"},
    "pydantic_ai": {"core"},
    "sqlalchemy": {"db"},
    "alembic": {"db"},
    "redis": {"stores"},
    "opentelemetry": {"tracing"},
}
ENTRANCES = {"cli", "commands", "server", "__main__", "bench"}


def room_of(path: Path) -> str:
    return path.relative_to(APP).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breaches(room: str, source: str) -> list[str]:
    """Every import of `source` that its room may not make."""
    found: list[str] = []
    for name in imports(ast.parse(source)):
        first, *rest = name.split(".")
        if first == "app" and rest and rest[0] in {*MAY_IMPORT, *ENTRANCES}:
            if rest[0] != room and rest[0] not in MAY_IMPORT[room]:
                found.append(name)
        elif first in HOME_OF and room not in HOME_OF[first]:
            found.append(name)
    return found


SOURCES = sorted(
    path
    for path in APP.rglob("*.py")
    if room_of(path) not in {*ENTRANCES, "__init__"} and "migrations" not in path.parts
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    assert breaches(room_of(path), path.read_text()) == []


def test_a_breach_is_found() -> None:
    assert breaches("core", "from app.api import problems") == ["app.api.problems"]
    assert breaches("db", "import fastapi") == ["fastapi"]
    assert breaches("stores", "def f():\n    from app.core.run import Caller") == ["app.core.run.Caller"]


def test_the_rooms_of_the_core_do_not_know_each_other() -> None:
    strangers = {"agent_pool", "cache_service", "rate_limiter", "metrics", "security"}
    for name in strangers:
        path = APP / "core" / f"{name}.py"
        if path.exists():
            known = {
                part.split(".")[2] for part in imports(ast.parse(path.read_text())) if part.startswith("app.core.")
            }
            assert not known & (strangers - {name}), f"{name} imports {known & strangers}"


@pytest.mark.parametrize("module", ["app.main", "app.cli", "app.runtime"])
def test_importing_starts_nothing_and_leaves_the_agent_stack_alone(module: str) -> None:
    program = (
        "import sys, threading, asyncio\n"
        f"import {module}\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "heavy = {'pydantic_ai', 'openai', 'alembic', 'redis', 'gunicorn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(  # the environment is empty: reading it at import would fail or show
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": ""}
    )
    assert done.returncode == 0, done.stderr


def named_files(page: str) -> set[str]:
    """The files that a page names, as it names them."""
    return set(re.findall(r"[\w./-]+\.(?:py|md)\b", re.sub(r"\]\([^)]*\)", "]", page)))


def is_there(name: str) -> bool:
    """Whether a file of the tree is called so: by its whole path, or by the end of it."""
    return any(str(path.relative_to(ROOT)).endswith(f"/{name}") for path in [*APP.rglob("*"), *ROOT.glob("*/*")])


def test_every_file_that_the_picture_of_the_house_names_is_there() -> None:
    names = named_files((ROOT / "ARCHITECTURE.md").read_text())
    assert len(names) > 60
    assert sorted(name for name in names if not (ROOT / name).exists() and not is_there(name)) == []


def test_the_picture_of_the_house_names_every_file_of_its_large_rooms() -> None:
    names = {Path(name).name for name in named_files((ROOT / "ARCHITECTURE.md").read_text())}
    files = {
        path.name for room in ("api", "core", "server") for path in (APP / room).glob("*.py") if path.stem != "__init__"
    }
    assert sorted(files - names) == [], "say in ARCHITECTURE.md what it is about"
