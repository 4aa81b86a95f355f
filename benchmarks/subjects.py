"""Who is measured: how each server starts, what it is asked, and the environment of its own that it runs in."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.load import NONCE

HERE = Path(__file__).parent
ROOT = HERE.parent
QUESTION = f"nonce:{NONCE} Which three habits make a small team of engineers reliable, and why those?"
TOOL_CALL = f'call:weather {{"city": "nonce:{NONCE}"}}'
_INSTALLERS = ("pip", "setuptools", "wheel", "_distutils_hack", "pkg_resources")


@dataclass(frozen=True)
class Way:
    """How one kind of load is sent to a server: the path and the body, in which `{nonce}` stands for a nonce."""

    path: str
    body: str
    content_type: str = "application/json"
    stream_ends: tuple[str, ...] | None = None
    """One of these stands in a complete stream; `None` for the usual ones."""


def prompt(path: str, message: str = QUESTION, **fields: Any) -> Way:
    """A prompt in the contract's words, which the limits and "before" understand too."""
    return Way(path, json.dumps({"message": message, **fields}))


def ways(path: str) -> dict[str, Way]:
    """A plain and a streamed prompt."""
    return {"uncached": prompt(path), "stream": prompt(path, stream=True)}


@dataclass(frozen=True)
class Subject:
    """A server to measure."""

    name: str
    environment: str | None
    """Its folder under `.venvs/`; `None` for the environment that measures."""
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    """Behind the environment's `python`; `{port}` and `{workers}` are filled in."""
    ways: Mapping[str, Way]
    """From a kind of load (`uncached`, `cached`, `stream`, `tool idle`, `tool called`) to how it is asked."""
    folder: Path = ROOT
    login: bool = False
    """Whether its token comes from its own password login; else it is `token`."""
    token: str = "bench"
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    load_env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Added for the servers under load, not where starts and memory are measured."""
    versions: tuple[str, ...] = ()
    """Packages of its environment whose versions the results name."""

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.environment is None else HERE / ".venvs" / self.environment / "bin/python"

    @property
    def site(self) -> Path:
        (found,) = (HERE / ".venvs" / str(self.environment)).glob("lib/python*/site-packages")
        return found


UVICORN = ("-m", "uvicorn", "--loop", "uvloop", "--http", "httptools", "--log-level", "warning", "--no-access-log")
ON_PORT = ("--port", "{port}")
PROMPT = "/api/v1/agent/prompt"
BEFORE = Subject(
    "before",
    "before",
    ("-r", str(HERE / "before/requirements.txt")),
    (*UVICORN, *ON_PORT, "--workers", "{workers}", "app:app"),
    ways(PROMPT),
    folder=HERE / "before",
    login=True,
    versions=("fastapi", "langgraph", "pydantic-ai-slim", "sqlalchemy", "uvicorn"),
)
MNEMOSINE = Subject(
    "mnemosine",
    "mnemosine",
    ("-c", "constraints.txt", str(ROOT)),
    ("-m", "app", "serve", *ON_PORT, "--workers", "{workers}"),
    {
        **ways(PROMPT),
        "cached": prompt(PROMPT),
        "tool idle": prompt(PROMPT, agent="weatherman"),
        "tool called": prompt(PROMPT, TOOL_CALL, agent="weatherman"),
    },
    login=True,
    # A limit that no load reaches: every request is counted against it, as in production, and none is refused.
    env={"RATE_LIMIT_PER_MINUTE": "1000000", "LOG_LEVEL": "warning"},
    load_env={"AGENTS": "benchmarks.plain_application:weatherman"},
    versions=("aiohttp", "fastapi", "pydantic-ai-slim", "sqlalchemy", "uvicorn", "uvloop"),
)
LIMITS = ("-r", str(HERE / "limits/requirements.txt"))
BARE = Subject(
    "bare ASGI",
    "limits",
    LIMITS,
    (*UVICORN, *ON_PORT, "--lifespan", "off", "bare:app"),
    {**ways("/pass"), "cached": prompt("/cached")},
    folder=HERE / "limits",
    versions=("aiohttp", "fastapi", "pydantic-ai-slim", "uvicorn", "uvloop"),
)
FASTAPI = Subject(
    "FastAPI pass-through",
    "limits",
    LIMITS,
    (*UVICORN, *ON_PORT, "framework:app"),
    {"uncached": prompt("/pass")},
    folder=HERE / "limits",
)
AGENT = Subject(
    "FastAPI + one agent",
    "limits",
    LIMITS,
    (*UVICORN, *ON_PORT, "framework:app"),
    {
        **ways("/agent"),
        "tool idle": prompt("/agent", agent="weatherman"),
        "tool called": prompt("/agent", TOOL_CALL, agent="weatherman"),
    },
    folder=HERE / "limits",
)
SUBJECTS = (BEFORE, BARE, FASTAPI, AGENT, MNEMOSINE)


def make_environment(subject: Subject) -> None:
    """Make the environment of `subject`, with bytecode, where it is missing or was made from other requirements."""
    if subject.environment is None:
        return
    folder = HERE / ".venvs" / subject.environment
    stamp, wanted = folder / "made-from", _wanted(subject)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"making the environment of {subject.name}", file=sys.stderr, flush=True)
    uv = shutil.which("uv")
    bare = ["--without-pip"] if uv else []
    subprocess.run([sys.executable, "-m", "venv", "--clear", *bare, str(folder)], check=True)
    with_pip = [str(subject.python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    with_uv = [uv, "pip", "install", "-q", "--compile-bytecode", "-p", str(subject.python)] if uv else None
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "constraints.txt").write_text(_versions())
        subprocess.run([*(with_uv or with_pip), *subject.requirements], check=True, cwd=scratch)
    stamp.write_text(wanted)


def _wanted(subject: Subject) -> str:
    named = [Path(part) for part in subject.requirements if part.endswith(".txt") and Path(part).is_file()]
    texts = [path.read_text() for path in named] or [_versions(), (ROOT / "pyproject.toml").read_text()]
    return hashlib.sha256("\0".join([sys.version, *texts]).encode()).hexdigest()


def _versions() -> str:
    # Without its hashes: pip demands one for everything as soon as it sees one, and a folder has none.
    return re.sub(r" *\\\n *--hash=\S+", "", (ROOT / "constraints.txt").read_text())


def installed(subject: Subject) -> dict[str, float]:
    """Bytes and packages of an environment, without bytecode and without the installer."""
    total = 0
    for folder, folders, files in os.walk(subject.site):
        if Path(folder) == subject.site:
            # What Mnemosine itself weighs is counted in the checkout: the copy here is as old as the environment.
            own = {"app"} if subject.name == MNEMOSINE.name else set()
            folders[:] = [name for name in folders if not name.startswith(_INSTALLERS) and name not in own]
        folders[:] = [name for name in folders if name != "__pycache__"]
        total += sum(os.lstat(os.path.join(folder, name)).st_size for name in files)
    if subject.name == MNEMOSINE.name:
        own_files = [path for path in (ROOT / "app").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        total += sum(path.stat().st_size for path in own_files)
    packages = [path for path in subject.site.glob("*.dist-info") if not path.name.startswith(_INSTALLERS)]
    return {"bytes": total, "packages": len(packages)}


def versions_of(subject: Subject) -> dict[str, str]:
    """The versions of what matters in an environment."""
    wanted = {name.replace("-", "_"): name for name in subject.versions}
    found: dict[str, str] = {}
    for path in subject.site.glob("*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        if name.lower() in wanted:
            found[wanted[name.lower()]] = version
    return dict(sorted(found.items()))
