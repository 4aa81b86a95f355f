"""A server under measurement: started on its core, signed in, asked from the other core, stopped again."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from app.load import NONCE
from benchmarks.subjects import MNEMOSINE, ROOT, Subject, Way

PASSWORD = "correct horse battery staple"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
SERVER_CORES = CORES[:1] if len(CORES) > 1 else CORES
LOAD_CORES = CORES[1:2] if len(CORES) > 1 else CORES


@dataclass
class Running:
    """A server that is up."""

    subject: Subject
    url: str
    process: psutil.Process
    token: str
    home: Path
    ready_s: float = 0.0
    """From its start to its first answer to a prompt."""
    not_able: dict[str, str] = field(default_factory=dict[str, str])
    """Kinds of load that it does not take, and what it said."""

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def pss_bytes(self) -> int:
        return sum(process.memory_full_info().pss for process in self.processes())

    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")[-2000:]


class Provider:
    """The fake provider, a process on the load's core."""

    def __init__(self, process: psutil.Process, url: str) -> None:
        self.process = process
        self.url = url

    def control(self, **changes: float) -> None:
        """Change what it does from now on; see `fake_provider.py`."""
        post(f"{self.url.removesuffix('/v1')}/control", json.dumps(changes).encode(), "")

    def cpu_s(self) -> float:
        return sum(self.process.cpu_times()[:2])


class Bystanders:
    """Measures what other programs did on this machine while a block ran."""

    def __init__(self, *ours: Callable[[], float]) -> None:
        self._ours = ours
        self._began = time.monotonic()
        self._busy, self._own = _busy_s(), self._own_s()

    def percent(self) -> float:
        """Of all cores, since this was made: the share that was busy with anything but our own processes."""
        elapsed = max(1e-9, time.monotonic() - self._began)
        others = _busy_s() - self._busy - (self._own_s() - self._own)
        return max(0.0, 100 * others / elapsed / (psutil.cpu_count() or 1))

    def _own_s(self) -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used) + sum(cpu_s() for cpu_s in self._ours)


def _busy_s() -> float:
    # Interrupts are left out: those of the loopback network belong to nobody.
    times = psutil.cpu_times()
    return times.user + times.system + getattr(times, "nice", 0.0)


@contextmanager
def fake_provider() -> Iterator[Provider]:
    """The fake provider for as long as the block lasts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fake_provider"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        preexec_fn=pinned(LOAD_CORES),
    )
    try:
        assert process.stdout is not None
        yield Provider(psutil.Process(process.pid), json.loads(process.stdout.readline())["base_url"])
    finally:
        process.terminate()
        process.wait()


@contextmanager
def serve(
    subject: Subject, provider: Provider, home: Path, *, workers: int = 1, for_load: bool = False
) -> Iterator[Running]:
    """`subject`, up and signed in, for as long as the block lasts. Raises `RuntimeError` where it does not start.

    `home` keeps its data from one start to the next. Only servers `for_load` are asked what they are able to do.
    """
    port = free_port()
    kept_token = home / "token"
    token = kept_token.read_text() if kept_token.exists() else subject.token
    env = {
        **{name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}},
        "OPENAI_BASE_URL": provider.url,
        "OPENAI_API_BASE": provider.url,
        "OPENAI_API_KEY": "any",
        "DEFAULT_MODEL": "openai-chat:gpt-4o-mini",
        "PYDANTIC_AI_NO_BANNER": "1",
        "DATA_DIR": str(home),
        "SECRET_KEY": "a key that is long enough for the benchmark",
        "ADMIN_USERNAME": "admin",
        "ADMIN_PASSWORD": PASSWORD,
        "ACCESS_TOKEN_EXPIRE_MINUTES": "600",
        "BENCH_TOKEN": subject.token,
        **subject.env,
        **(subject.load_env if for_load else {}),
    }
    command = [str(subject.python), *(part.format(port=port, workers=workers) for part in subject.command)]
    with (home / "log").open("ab") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=subject.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=pinned(SERVER_CORES),
        )
    server = Running(subject, f"http://127.0.0.1:{port}", psutil.Process(process.pid), token, home)
    try:
        _wait_for_answer(server, process, signed_in=kept_token.exists() or not subject.login)
        server.ready_s = time.perf_counter() - started
        if subject.login:
            server.token = _sign_in(server.url)
            kept_token.write_text(server.token)
        if for_load:
            _probe(server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with suppress(ProcessLookupError):  # the group is our own: made by `start_new_session`
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for_answer(server: Running, process: subprocess.Popen[bytes], *, signed_in: bool) -> None:
    way = server.subject.ways["uncached"]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{server.subject.name} ended: {server.log()}")
        try:
            status, _, _ = send(server, way, "ready")
        except OSError:
            time.sleep(0.005)
            continue
        if status == 200 or (status == 401 and not signed_in):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{server.subject.name} does not answer: {server.log()}")


def _sign_in(url: str) -> str:
    form = urllib.parse.urlencode({"username": "admin", "password": PASSWORD}).encode()
    status, reply, _ = post(f"{url}/api/v1/auth/token", form, "", content_type="application/x-www-form-urlencoded")
    if status != 200:
        raise RuntimeError(f"signing in was answered {status}: {reply[:200].decode()}")
    return json.loads(reply)["access_token"]


def _probe(server: Running) -> None:
    """Find the kinds of load that this server does not take."""
    for kind, way in server.subject.ways.items():
        nonce = f"probe-{kind.replace(' ', '-')}"
        status, reply, headers = send(server, way, nonce)
        # The nonce of a stream is spread over its events; the load puts it together.
        if status != 200 or (kind != "stream" and nonce.encode() not in reply):
            server.not_able[kind] = f"status {status}: {reply[:120].decode(errors='replace')}"
        elif kind == "cached" and server.subject.name == MNEMOSINE.name:
            status, reply, headers = send(server, way, nonce)
            if headers.get("X-Cache") != "HIT":
                server.not_able[kind] = "the second equal prompt is no hit"


def send(server: Running, way: Way, nonce: str) -> tuple[int, bytes, Any]:
    """One request: status, body, headers."""
    body = way.body.replace(NONCE, nonce).encode()
    return post(server.url + way.path, body, server.token, content_type=way.content_type)


def post(url: str, body: bytes, token: str, *, content_type: str = "application/json") -> tuple[int, bytes, Any]:
    request = urllib.request.Request(url, body, {"content-type": content_type, "authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def ask(server: Running, kind: str, *, connections: int, **how_long: float) -> dict[str, Any]:
    """Load `server` from a process of its own on the load's core; `how_long` is as in `Load`."""
    way = server.subject.ways[kind]
    load = {
        "url": server.url + way.path,
        "bodies": [way.body],
        "headers": {"authorization": f"Bearer {server.token}", "content-type": way.content_type},
        "connections": connections,
        **how_long,
        "drain_s": 3.0,
        "equal": kind == "cached",
        "streamed": kind == "stream",
        # A pass-through hands the provider's stream on as it is; all of them repeat the nonce.
        "check": "echo",
        **({"stream_ends": way.stream_ends} if way.stream_ends else {}),
    }
    done = subprocess.run(
        [sys.executable, "-m", "app.load"],
        input=json.dumps(load),
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=pinned(LOAD_CORES),
    )
    if done.returncode:
        raise RuntimeError(f"the load on {server.subject.name} failed: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def settle(server: Running, *, at_most_s: float = 20.0) -> None:
    """Wait until `server` has finished what an earlier load left it with."""
    deadline = time.monotonic() + at_most_s
    while time.monotonic() < deadline:
        began = server.cpu_s()
        time.sleep(0.1)
        if server.cpu_s() - began < 0.02:
            return


def pinned(cores: list[int]) -> Callable[[], None]:
    def pin() -> None:
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)

    return pin


def free_port() -> int:
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return probing.getsockname()[1]


@contextmanager
def homes(subjects: tuple[Subject, ...]) -> Iterator[dict[str, Path]]:
    """A data directory for each subject."""
    with tempfile.TemporaryDirectory(prefix="mnemosine-bench-") as folder:
        made = {subject.name: Path(folder) / str(at) for at, subject in enumerate(subjects)}
        for home in made.values():
            home.mkdir()
        yield made
