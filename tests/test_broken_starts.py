"""A start that finds something broken: at most three lines, with the setting in them, and an exit status that tells."""

import asyncio
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest

from app.config import load_settings
from app.installation import prepare
from tests.process import ROOT, START_TIMEOUT_S

MOST_LINES = 3


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A data directory that has its administrator, so that a start has no news."""
    asyncio.run(prepare(load_settings(env_file=None, data_dir=tmp_path / "data")))
    return tmp_path / "data"


@contextmanager
def starting(data: Path, *options: str, **environment: str) -> Generator[tuple[subprocess.Popen[bytes], Path]]:
    """A server that starts, and the file of what it says on standard error."""
    said = data.with_name("said.txt")
    with said.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", *options],
            cwd=ROOT,
            env={"PATH": "", "PORT": "0", "DATA_DIR": str(data), **environment},
            stdout=subprocess.DEVNULL,
            stderr=written,
        )
        try:
            yield process, said
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def port_taken(data: Path) -> Generator[dict[str, str]]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield {"PORT": str(taken.getsockname()[1])}


def data_directory_unusable(data: Path) -> nullcontext[dict[str, str]]:
    file = data / "file"
    file.touch()
    return nullcontext({"DATA_DIR": str(file)})


def database_away(data: Path) -> nullcontext[dict[str, str]]:
    return nullcontext({"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"})


def schema_newer(data: Path) -> nullcontext[dict[str, str]]:
    with closing(sqlite3.connect(data / "mnemosine.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    return nullcontext({})


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("broken", "status", "named"),
    [
        (port_taken, 2, "PORT"),
        (data_directory_unusable, 2, "DATA_DIR"),
        (database_away, 1, "DATABASE(_URL)?"),
        (schema_newer, 2, "DATABASE_URL"),
    ],
    ids=["port", "data directory", "database", "schema"],
)
def test_a_start_that_cannot_work_says_so_and_ends(
    installation: Path,
    workers: str,
    broken: Callable[[Path], nullcontext[dict[str, str]]],
    status: int,
    named: str,
) -> None:
    with (
        broken(installation) as environment,
        starting(installation, "--workers", workers, **environment) as (process, said),
    ):
        assert process.wait(START_TIMEOUT_S) == status
        lines = said.read_text().splitlines()
    assert 1 <= len(lines) <= MOST_LINES, lines
    assert re.search(rf"(?i)\b{named}\b", lines[-1]), lines


@pytest.mark.parametrize("workers", [1, 2])
def test_a_start_without_redis_says_so_and_serves(installation: Path, workers: int) -> None:
    url = "redis://127.0.0.1:1/0"
    with starting(installation, "--workers", str(workers), REDIS_URL=url) as (process, said):
        deadline = time.monotonic() + START_TIMEOUT_S
        while len(said.read_text().splitlines()) < workers:
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.02)
        process.terminate()
        assert process.wait(START_TIMEOUT_S) == 0
        lines = said.read_text().splitlines()
    assert len(lines) <= MOST_LINES, lines
    assert all("REDIS_URL" in line for line in lines), lines
