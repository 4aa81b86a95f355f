"""The command line, run as an operator runs it: in a process of its own, in an empty folder."""

import hashlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import __version__
from app.config import Settings, example_env
from app.errors import BadConfiguration
from app.server import bind

REPOSITORY = Path(__file__).parent.parent
HEAVY = ("fastapi", "starlette", "sqlalchemy", "pydantic_ai", "pydantic", "uvicorn", "gunicorn", "openai")


def environment(**settings: str) -> dict[str, str]:
    ours = {name.upper() for name in Settings.model_fields} | {"OPENAI_API_KEY", "ANTHROPIC_API_KEY"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "PYTHONPATH": str(REPOSITORY), **settings}


def run(folder: Path, *arguments: str, stdin: str | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=folder, env=environment(**settings), input=stdin, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


class Started:
    """A running `mnemosine serve`; what it printed is in `out` and `err`."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        self._out, self._err = folder / "stdout.txt", folder / "stderr.txt"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve", "--port", "0", *arguments],
                cwd=folder, env=environment(**settings), stdout=out, stderr=err,
            )  # fmt: skip

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_until_ready(self) -> str:
        deadline = time.monotonic() + 60
        while "Press Ctrl+C" not in self.out:
            assert self.process.poll() is None, self.err
            assert time.monotonic() < deadline, self.err
            time.sleep(0.05)
        address = re.search(r"listens on (http://\S+)", self.out)
        assert address
        return address[1]

    def stop(self, signum: int = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.process.wait(30)


@contextmanager
def serving(folder: Path, *arguments: str, **settings: str) -> Generator[Started]:
    started = Started(folder, *arguments, **settings)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.stop()


def get(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.status


def test_help_and_version_are_quick(tmp_path: Path) -> None:
    imported = subprocess.run(
        [sys.executable, "-c", "import sys, app.cli; print(*sys.modules)"],
        env=environment(), capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not set(HEAVY).intersection(imported)
    assert run(tmp_path, "--version").stdout == f"mnemosine {__version__}\n"
    shown = run(tmp_path, "--help").stdout
    assert all(command in shown for command in ("serve", "check-config", "create-user", "create-key", "db"))


def test_check_config_shows_the_settings_without_secrets(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CACHE_TTL=60\nCACHE_MAX_BITES=1\nSECRET_KEY=" + "canary" * 8)
    done = run(tmp_path, "check-config", DATABASE_URL="postgresql://u:canary@h/d", PORT="1234")
    assert done.returncode == 0
    assert re.search(r"^PORT +1234 +\(environment\)$", done.stdout, re.MULTILINE)
    assert re.search(r"^CACHE_TTL +60 +\(\.env\)$", done.stdout, re.MULTILINE)
    assert "did you mean CACHE_MAX_BYTES?" in done.stderr
    assert "canary" not in done.stdout + done.stderr


def test_check_config_prints_the_example_file(tmp_path: Path) -> None:
    assert run(tmp_path, "check-config", "--example", PORT="broken").stdout == example_env()


@pytest.mark.parametrize("command", ["check-config", "serve", "create-user x", "db current", "db upgrade"])
def test_a_bad_setting_is_one_line_and_status_2(tmp_path: Path, command: str) -> None:
    done = run(tmp_path, *command.split(), CACHE_TTL="soon")
    assert done.returncode == 2
    assert done.stderr == "mnemosine: CACHE_TTL must be a valid integer, got 'soon'; example: CACHE_TTL=3600\n"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("settings", "status", "line"),
    [
        ({"DATA_DIR": "/dev/null/data"}, 2, "DATA_DIR /dev/null/data cannot be created"),
        ({"HOST": "no-such-host.invalid"}, 2, "HOST no-such-host.invalid is no address"),
        ({"HOST": "0.0.0.0", "DEBUG": "1"}, 2, "DEBUG must be off"),
        ({"DATABASE_URL": "postgresql://u:canary@127.0.0.1:1/x"}, 1, "DATABASE_URL"),
    ],
    ids=["data directory", "host", "debug", "database"],
)
def test_a_start_that_cannot_work_is_one_line(tmp_path: Path, settings: dict[str, str], status: int, line: str) -> None:
    done = run(tmp_path, "serve", **{"PORT": "0", **settings})
    assert done.returncode == status
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mnemosine: ")
    assert line in last
    assert "Traceback" not in done.stderr
    assert "canary" not in done.stderr


def test_a_taken_port_is_one_line_and_nothing_is_created(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(tmp_path, "serve", PORT=str(port))
    assert done.returncode == 2
    assert done.stderr.startswith(f"mnemosine: PORT {port} on 127.0.0.1 is taken by another program; example: ")
    assert not (tmp_path / "data" / "secret.key").exists()


def test_a_bound_socket_holds_its_port() -> None:
    with bind("127.0.0.1", 0) as first, pytest.raises(BadConfiguration, match="is taken"):
        bind("127.0.0.1", first.getsockname()[1])


def test_serve_prints_where_it_listens_and_ends_with_status_0(tmp_path: Path) -> None:
    with serving(tmp_path) as started:
        base = started.wait_until_ready()
        assert get(f"{base}/livez") == 200
        assert f"docs       {base}/docs" in started.out
        assert f"dashboard  {base}/dashboard" in started.out
        assert "model      offline" in started.out
        assert started.stop() == 0
        assert "Traceback" not in started.err
    assert (tmp_path / "data" / "secret.key").stat().st_mode & 0o777 == 0o600


def test_the_first_password_is_printed_once_and_stored_nowhere(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        first.wait_until_ready()
        password = re.search(r"shown this once:\s+(\S{24})$", first.err, re.MULTILINE)
        assert password
        assert first.stop(signal.SIGINT) == 0
        assert password[1] not in first.out
    for file in filter(Path.is_file, (tmp_path / "data").rglob("*")):
        assert password[1].encode() not in file.read_bytes()
    with serving(tmp_path) as second:
        second.wait_until_ready()
        assert "password" not in second.err


def test_several_workers_serve_and_end_with_status_0(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as started:
        base = started.wait_until_ready()
        assert all(get(f"{base}/livez") == 200 for _ in range(20))
        assert started.err.count("shown this once") == 1
        assert started.stop() == 0
        assert "Traceback" not in started.err


def test_a_signal_during_the_start_ends_it_quietly(tmp_path: Path) -> None:
    with serving(tmp_path) as started:
        time.sleep(0.4)
        began = time.monotonic()
        assert started.stop() in (0, -signal.SIGTERM)
        assert time.monotonic() - began < 10
        assert "Traceback" not in started.err


def test_an_agent_of_the_current_folder_may_be_named(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "not_an_agent")
    assert done.returncode == 2
    assert done.stderr.startswith("mnemosine: AGENTS must list package.module:attribute")


def test_create_user_takes_a_password_or_makes_one(tmp_path: Path) -> None:
    made = run(tmp_path, "create-user", "alice")
    assert made.returncode == 0
    assert re.fullmatch(r"\S{24}\n", made.stdout)
    given = run(tmp_path, "create-user", "bob", "--role", "admin", "--password-stdin", stdin="a long passphrase\n")
    assert (given.returncode, given.stdout) == (0, "")
    again = run(tmp_path, "create-user", "ALICE")
    assert again.returncode == 1
    assert again.stderr == "mnemosine: the username 'ALICE' is taken\n"
    with sqlite3.connect(tmp_path / "data" / "mnemosine.db") as database:
        rows = database.execute("SELECT username, role, password_hash FROM users ORDER BY username").fetchall()
    database.close()
    assert [row[:2] for row in rows] == [("alice", "user"), ("bob", "admin")]
    assert all(row[2].startswith("$argon2id$v=19$m=19456,t=2,p=1$") for row in rows)


def test_create_key_prints_a_key_that_is_stored_as_a_digest(tmp_path: Path) -> None:
    assert "create-user alice" in run(tmp_path, "create-key", "alice").stderr
    run(tmp_path, "create-user", "alice")
    options = ("--name", "laptop", "--expires-in-days", "30", "--agent", "haiku", "--agent", "ticket", "--chat-ui")
    made = run(tmp_path, "create-key", "Alice", *options, "--requests-per-minute", "5")
    assert made.returncode == 0
    key = re.fullmatch(r"mn_(\w{12})_\w{43}\n", made.stdout)
    assert key
    plain = run(tmp_path, "create-key", "alice")
    assert plain.stdout != made.stdout
    with sqlite3.connect(tmp_path / "data" / "mnemosine.db") as database:
        columns = "id, name, digest, agents, requests_per_minute, chat_ui, expires_at IS NULL"
        rows = database.execute(f"SELECT {columns} FROM api_keys ORDER BY created_at").fetchall()
    database.close()
    digest = hashlib.sha256(made.stdout.strip().encode()).hexdigest()
    assert rows[0] == (key[1], "laptop", digest, '["haiku", "ticket"]', 5, 1, 0)
    assert rows[1][1:] == ("command line", hashlib.sha256(plain.stdout.strip().encode()).hexdigest(), None, None, 0, 1)


def test_create_user_refuses_a_short_password(tmp_path: Path) -> None:
    done = run(tmp_path, "create-user", "eve", "--password-stdin", stdin="short\n")
    assert done.returncode == 2
    assert "at least 8 characters" in done.stderr


def test_db_commands_tell_the_revision(tmp_path: Path) -> None:
    assert run(tmp_path, "db", "upgrade").stdout.startswith("upgraded to ")
    assert run(tmp_path, "db", "upgrade").stdout.startswith("already at ")
    assert re.fullmatch(r"database (\S+), code \1\n", run(tmp_path, "db", "current").stdout)
