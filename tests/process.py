"""A server as a user starts it, and a fake provider: each a process of its own on a free port."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx2

from tests.prepared import install

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 120.0


@dataclass(slots=True)
class ServerProcess:
    """A running server; `url` is where it listens, `output()` what it has printed so far."""

    process: subprocess.Popen[bytes]
    url: str
    printed: IO[bytes]
    headers: dict[str, str] = field(default_factory=dict[str, str])

    def output(self) -> str:
        return Path(self.printed.name).read_text()

    def first_password(self) -> str:
        """The administrator's password as the terminal showed it."""
        found = re.search(r"^ {4}(\S{20,})$", self.output(), re.MULTILINE)
        assert found, self.output()
        return found[1]

    def sign_in(self, username: str = "admin", password: str | None = None) -> None:
        """From now on `get` and `post` are sent as this user."""
        form = {"username": username, "password": password or self.first_password()}
        reply = httpx2.post(f"{self.url}/api/v1/auth/token", data=form)
        self.headers = {"Authorization": f"Bearer {reply.json()['access_token']}"}

    def make_key(self) -> str:
        """A new API key of the user who is signed in."""
        reply = httpx2.post(f"{self.url}/api/v1/auth/api-keys", json={"name": "test"}, headers=self.headers)
        return reply.json()["key"]

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(self.url + path, headers=self.headers, timeout=30)

    def prompt(self, message: str) -> httpx2.Response:
        return httpx2.post(
            f"{self.url}/api/v1/agent/prompt", json={"message": message}, headers=self.headers, timeout=60
        )

    def wait_for(self, path: str, *, status: int = 200) -> httpx2.Response:
        """The first answer of this status. Raises `AssertionError` with the server's output when it does not come."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                reply = self.get(path)
                if reply.status_code == status:
                    return reply
            except httpx2.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"{path} never answered {status}; the server printed:\n{self.output()}")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send one signal and give the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(timeout=40)


@dataclass(frozen=True, slots=True)
class ProviderProcess:
    """A fake provider in a process of its own; `stats()` are its counters."""

    base_url: str

    def stats(self) -> dict[str, int]:
        return httpx2.get(self.base_url.replace("/v1", "/stats")).json()

    def control(self, **changes: object) -> None:
        """Change what it does from now on; see `benchmarks/fake_provider.py`."""
        httpx2.post(self.base_url.replace("/v1", "/control"), json=changes).raise_for_status()

    def wait_until(self, claim: Callable[[dict[str, int]], bool], *, timeout_s: float = 10.0) -> dict[str, int]:
        """The counters as soon as they fulfil `claim`. Raises `AssertionError` with the last ones."""
        deadline = time.monotonic() + timeout_s
        while not claim(stats := self.stats()):
            assert time.monotonic() < deadline, stats
            time.sleep(0.02)
        return stats


@contextmanager
def providing(*options: str) -> Generator[ProviderProcess]:
    """A fake provider for as long as the block lasts."""
    command = [sys.executable, "-m", "benchmarks.fake_provider", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield ProviderProcess(json.loads(process.stdout.readline())["base_url"])
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(
    command: Sequence[str], tmp_path: Path, folder: Path = ROOT, /, *, port: int, **environment: str
) -> Generator[ServerProcess]:
    """`command` as a process in `folder` with its data in `tmp_path`, ended (by its own pid) when the block ends."""
    env = {
        key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV"}
    } | {"DATA_DIR": str(tmp_path / "data"), **environment}
    with (tmp_path / "printed.txt").open("wb") as printed:
        process = subprocess.Popen([*command], cwd=folder, env=env, stdout=printed, stderr=subprocess.STDOUT)
        server = ServerProcess(process, f"http://127.0.0.1:{port}", printed)
        try:
            yield server
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def serving(tmp_path: Path, *options: str, module: str = "app", **environment: str) -> Generator[ServerProcess]:
    """`mnemosine serve` on a free port, alive; not necessarily ready yet.

    With an `ADMIN_PASSWORD`, and on SQLite, it finds what a first start has left behind.
    `module` may be one that spoils the server.
    """
    if "ADMIN_PASSWORD" in environment and "DATABASE_URL" not in environment:
        install(tmp_path / "data", environment["ADMIN_PASSWORD"])
    port = free_port()
    command = [sys.executable, "-m", module, "serve", "--port", str(port), *options]
    with running(command, tmp_path, port=port, **environment) as server:
        server.wait_for("/livez")
        yield server
