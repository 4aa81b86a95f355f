"""`mnemosine serve` and `uvicorn app.main:app` as a newcomer uses them: real processes, real sockets."""

import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.process import ROOT, free_port, running, serving


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What a server in an empty folder said, and what it left there when it was ended."""

    folder: Path
    url: str
    reply: httpx2.Response
    output: str
    password: str
    status: int


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> FirstStart:
    folder = tmp_path_factory.mktemp("first")
    with serving(folder) as server:
        server.sign_in()
        reply = server.prompt("Hello, world!")
        output = server.output()
        return FirstStart(folder, server.url, reply, output, server.first_password(), server.stop())


def test_the_first_start_answers_the_first_prompt(first: FirstStart) -> None:
    assert first.reply.status_code == 200
    assert "Hello, world!" in first.reply.json()["response"]
    assert first.url in first.output
    assert "/docs" in first.output
    assert "offline" in first.output
    assert first.status == 0


def test_the_signing_key_and_the_database_are_the_owners_alone(first: FirstStart) -> None:
    data = first.folder / "data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "secret.key").stat().st_mode) == 0o600


def test_the_password_is_shown_once_and_stored_nowhere(first: FirstStart) -> None:
    data = b"".join(path.read_bytes() for path in (first.folder / "data").rglob("*") if path.is_file())
    assert first.password.encode() not in data
    with serving(first.folder) as server:
        server.sign_in(password=first.password)
        assert server.get("/api/v1/auth/me").json()["role"] == "admin"
        assert first.password not in server.output()
        server.stop()


def test_a_prompt_that_comes_before_the_agents_are_loaded_waits_for_them(tmp_path: Path) -> None:
    with serving(tmp_path, ADMIN_PASSWORD="a password for tests") as server:
        early = server.get("/readyz")
        server.sign_in(password="a password for tests")
        reply = server.prompt("early")
        ready = server.wait_for("/readyz")
    assert early.status_code == 503, "the control: the agents were not loaded yet"
    assert early.json()["reason"] == "agents"
    assert reply.status_code == 200
    assert ready.json()["status"] == "ready"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_the_runs_are_written(tmp_path: Path, signum: int) -> None:
    import sqlite3

    with serving(tmp_path, ADMIN_PASSWORD="a password for tests") as server:
        server.sign_in(password="a password for tests")
        for number in range(5):
            server.prompt(f"run {number}")
        status = server.stop(signum)
        output = server.output()
    database = sqlite3.connect(tmp_path / "data" / "mnemosine.db")
    statuses = [row[0] for row in database.execute("select status from runs")]
    database.close()
    assert status == 0
    assert statuses == ["done"] * 5
    assert "Traceback" not in output


def test_uvicorn_serves_the_same_application(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, tmp_path, port=port) as server:
        server.wait_for("/readyz")
        server.sign_in()
        assert server.prompt("Hello, uvicorn").json()["agent"] == "default"
        server.stop()


def test_a_bad_setting_stops_the_start_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=ROOT,
        env={"PATH": "", "DATA_DIR": str(tmp_path), "CACHE_TTL": "soon"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "CACHE_TTL" in done.stderr
