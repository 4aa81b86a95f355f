"""Before, the limits of this machine, and Mnemosine, side by side in one run; writes RESULTS.md and results.json.

The servers run on one core, the load and the fake provider on another. Of every row each subject is measured in turn,
in alternating order, so that a drift of the machine meets all of them alike. Each subject has an environment of its
own under `.venvs/`, made when it is missing.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from app.load import NONCE

HERE = Path(__file__).parent
ROOT = HERE.parent
PASSWORD = "correct horse battery staple"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
SERVER_CORES = CORES[:1] if len(CORES) > 1 else CORES
LOAD_CORES = CORES[1:2] if len(CORES) > 1 else CORES
QUESTION = f"nonce:{NONCE} Which three habits make a small team of engineers reliable, and why those?"


@dataclass(frozen=True)
class Subject:
    """A server to measure: how it starts, where it listens, which loads it can take."""

    name: str
    environment: str | None
    """Its folder under `.venvs/`; `None` for the environment that measures."""
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    paths: dict[str, str]
    """From a kind of load (`uncached`, `cached`, `stream`) to the path that takes it."""
    folder: Path = ROOT
    login: bool = False
    env: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.environment is None else HERE / ".venvs" / self.environment / "bin/python"


UVICORN = ("-m", "uvicorn", "--loop", "uvloop", "--http", "httptools", "--log-level", "warning", "--port", "{port}")
PROMPT = "/api/v1/agent/prompt"
BEFORE = Subject(
    "before",
    "before",
    ("-r", str(HERE / "before/requirements.txt")),
    (*UVICORN, "--workers", "{workers}", "app:app"),
    {"uncached": PROMPT, "stream": PROMPT},
    folder=HERE / "before",
    login=True,
)
MNEMOSINE = Subject(
    "mnemosine",
    "mnemosine",
    ("-c", "constraints.txt", str(ROOT)),
    ("-m", "app", "serve", "--port", "{port}", "--workers", "{workers}"),
    {"uncached": PROMPT, "cached": PROMPT, "stream": PROMPT},
    login=True,
    env={"RATE_LIMIT_PER_MINUTE": "0", "LOG_LEVEL": "warning"},
)
LIMITS = ("-r", str(HERE / "limits/requirements.txt"))
BARE = Subject(
    "bare ASGI",
    "limits",
    LIMITS,
    (*UVICORN, "--lifespan", "off", "bare:app"),
    {"uncached": "/pass", "cached": "/cached", "stream": "/pass"},
    folder=HERE / "limits",
)
FASTAPI = Subject(
    "FastAPI pass-through",
    "limits",
    LIMITS,
    (*UVICORN, "framework:app"),
    {"uncached": "/pass"},
    folder=HERE / "limits",
)
AGENT = Subject(
    "FastAPI + one agent",
    "limits",
    LIMITS,
    (*UVICORN, "framework:app"),
    {"uncached": "/agent", "stream": "/agent"},
    folder=HERE / "limits",
)
SUBJECTS = (BEFORE, BARE, FASTAPI, AGENT, MNEMOSINE)


@dataclass(frozen=True)
class Row:
    """One line of the table: a kind of load, its connections, and how long the provider thinks."""

    name: str
    kind: str
    connections: int
    latency_s: float = 0.0


ROWS = (
    Row("uncached, 1 connection", "uncached", 1),
    Row("uncached, 32 connections", "uncached", 32),
    Row("uncached, 200 connections", "uncached", 200),
    Row("cached, 1 connection", "cached", 1),
    Row("cached, 32 connections", "cached", 32),
    Row("cached, 200 connections", "cached", 200),
    Row("uncached, 300 ms model, 200 connections", "uncached", 200, 0.3),
    Row("20-chunk streams, 200 connections", "stream", 200),
)
CHUNK_GAP_S = 0.005


@dataclass
class Running:
    """A server that is up."""

    subject: Subject
    url: str
    process: psutil.Process
    token: str
    home: str
    ready_s: float = 0.0
    """From its start to its first answer to a prompt."""
    not_yet: dict[str, str] = field(default_factory=dict)
    """Kinds of load that it cannot take, and what it said."""

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def pss_bytes(self) -> int:
        return sum(process.memory_full_info().pss for process in self.processes())


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="longer windows and more rounds: half an hour")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="counted time of one measurement")
    options = parser.parse_args()
    rounds = options.rounds or (5 if options.full else 2)
    seconds = options.seconds or (5.0 if options.full else 1.5)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped
    results = measure(SUBJECTS, rounds=rounds, seconds=seconds, starts=5 if options.full else 2)
    results["command"] = " ".join(["python -m benchmarks", *sys.argv[1:]])
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results)
    (HERE / "RESULTS.md").write_text(text)
    print(text)


def measure(subjects: tuple[Subject, ...], *, rounds: int, seconds: float, starts: int) -> dict[str, Any]:
    """Everything that the tables show, of all `subjects`."""
    for subject in subjects:
        make_environment(subject)
    machine_before = (psutil.cpu_times(), os.getloadavg())
    results: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "facts": facts(), "rows": [], "memory": []}
    with ExitStack() as stack:
        provider, control = stack.enter_context(fake_provider())
        homes = {s.name: stack.enter_context(tempfile.TemporaryDirectory()) for s in subjects}
        cold: dict[str, list[float]] = {s.name: [] for s in subjects}
        for turn in range(starts + 1):
            for subject in subjects:
                with serve(subject, provider, homes[subject.name]) as running:
                    if turn:  # the first start makes bytecode, database and users
                        cold[subject.name].append(running.ready_s)
        results["cold_start_s"] = {name: spread(values) for name, values in cold.items()}
        with ExitStack() as servers:
            up = [servers.enter_context(serve(subject, provider, homes[subject.name])) for subject in subjects]
            results["not_yet"] = {server.subject.name: server.not_yet for server in up if server.not_yet}
            for row in ROWS:
                print(row.name, file=sys.stderr, flush=True)
                control(latency_s=row.latency_s, chunk_gap_s=CHUNK_GAP_S if row.kind == "stream" else 0.0)
                results["rows"].append(measure_row(row, up, rounds=rounds, seconds=seconds))
            control(latency_s=0.0, chunk_gap_s=0.0)
        for subject in (BEFORE, MNEMOSINE):
            if subject in subjects:
                for workers in (1, 4):
                    with serve(subject, provider, homes[subject.name], workers=workers) as server:
                        idle = server.pss_bytes()
                        ask(server, "uncached", connections=32, seconds=2 * seconds, warmup_s=0.2)
                        loaded = server.pss_bytes()
                    results["memory"].append(
                        {"subject": subject.name, "workers": workers, "before": idle, "after": loaded}
                    )
    results["installed"] = {subject.name: installed(subject) for subject in (BEFORE, MNEMOSINE) if subject in subjects}
    results["other_load"] = other_load(machine_before)
    return results


def measure_row(row: Row, up: list[Running], *, rounds: int, seconds: float) -> dict[str, Any]:
    able = [server for server in up if row.kind in server.subject.paths and row.kind not in server.not_yet]
    slow: set[str] = set()
    measured: dict[str, list[dict[str, float]]] = {server.subject.name: [] for server in able}
    for turn in range(rounds):
        for server in able if turn % 2 == 0 else reversed(able):
            if server.subject.name in slow and measured[server.subject.name]:
                continue
            settle(server)
            began = server.cpu_s()
            report = ask(server, row.kind, connections=row.connections, seconds=seconds, warmup_s=0.3)
            if report["answered"] < row.connections:
                # Too slow for the window: every connection gets one answer, and that is measured once.
                slow.add(server.subject.name)
                settle(server)
                began = server.cpu_s()
                report = ask(server, row.kind, connections=row.connections, requests=max(row.connections, 10))
            measured[server.subject.name].append(
                {
                    "per_second": report["per_second"],
                    **{name: report["latency_ms"][name] for name in ("p50", "p95", "p99")},
                    "first_token_p50": report["first_token_ms"]["p50"],
                    "cpu_ms": 1000 * (server.cpu_s() - began) / max(1, report["completed"]),
                    "errors": sum(report["errors"].values()) - report["errors"].get("unfinished", 0),
                    "unfinished": report["errors"].get("unfinished", 0),
                }
            )
    return {
        "name": row.name,
        "subjects": {
            name: {key: spread([run[key] for run in runs]) for key in runs[0]} for name, runs in measured.items()
        },
    }


def ask(server: Running, kind: str, *, connections: int, **how_long: float) -> dict[str, Any]:
    """Load `server` from a process of its own on the load's core; `how_long` is as in `Load`."""
    body = json.dumps({"message": QUESTION, **({"stream": True} if kind == "stream" else {})})
    load = {
        "url": server.url + server.subject.paths[kind],
        "bodies": [body],
        "headers": {"authorization": f"Bearer {server.token}"},
        "connections": connections,
        **how_long,
        "drain_s": 3.0,
        "equal": kind == "cached",
        "streamed": kind == "stream",
        # A pass-through hands the provider's stream on as it is; all of them repeat the nonce.
        "check": "echo",
    }
    done = subprocess.run(
        [sys.executable, "-m", "app.load"],
        input=json.dumps(load),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        preexec_fn=pinned(LOAD_CORES),
    )
    return json.loads(done.stdout)


def settle(server: Running, *, at_most_s: float = 30.0) -> None:
    """Wait until `server` has finished what an earlier load left it with."""
    deadline = time.monotonic() + at_most_s
    while time.monotonic() < deadline:
        began = server.cpu_s()
        time.sleep(0.1)
        if server.cpu_s() - began < 0.02:
            return


@contextmanager
def serve(subject: Subject, provider: str, home: str, *, workers: int = 1) -> Iterator[Running]:
    """Start `subject`, wait for its first answer, sign in, find out what it can do; stop it afterwards."""
    port = free_port()
    token_file = Path(home) / "token"
    token = token_file.read_text() if token_file.exists() else "bench"
    env = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "OPENAI_BASE_URL": provider,
        "OPENAI_API_KEY": "any",
        "DEFAULT_MODEL": "openai-chat:fake",
        "PYDANTIC_AI_NO_BANNER": "1",
        "DATA_DIR": home,
        "SECRET_KEY": "a key that is long enough for the benchmark",
        "ADMIN_USERNAME": "admin",
        "ADMIN_PASSWORD": PASSWORD,
        "ACCESS_TOKEN_EXPIRE_MINUTES": "600",
        "BENCH_TOKEN": "bench",
        **subject.env,
    }
    command = [part.format(port=port, workers=workers) for part in subject.command]
    log = (Path(home) / "log").open("ab")
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(subject.python), *command],
        cwd=subject.folder,
        env=env,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=pinned(SERVER_CORES),
    )
    server = Running(subject, f"http://127.0.0.1:{port}", psutil.Process(process.pid), token, home)
    try:
        wait_for_answer(server, process, signed_in=token_file.exists() or not subject.login)
        server.ready_s = time.perf_counter() - started
        if subject.login and not token_file.exists():
            form = urllib.parse.urlencode({"username": "admin", "password": PASSWORD}).encode()
            _, reply, _ = post(f"{server.url}/api/v1/auth/token", form, "", kind="application/x-www-form-urlencoded")
            server.token = json.loads(reply)["access_token"]
            token_file.write_text(server.token)
        probe(server)
        yield server
    finally:
        log.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_answer(server: Running, process: subprocess.Popen[bytes], *, signed_in: bool) -> None:
    path = server.subject.paths["uncached"]
    for _ in range(12_000):
        if process.poll() is not None:
            raise RuntimeError(f"{server.subject.name} ended: {(Path(server.home) / 'log').read_text()[-2000:]}")
        try:
            status, _, _ = post(server.url + path, b'{"message": "nonce:ready"}', server.token)
        except OSError:
            time.sleep(0.005)
            continue
        if status == 200 or (status == 401 and not signed_in):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{server.subject.name} does not answer")


def probe(server: Running) -> None:
    """Find the kinds of load that this server cannot take yet."""
    paths = server.subject.paths
    if "stream" in paths:
        status, reply, _ = post(
            server.url + paths["stream"], b'{"message": "nonce:probe", "stream": true}', server.token
        )
        if status != 200:
            server.not_yet["stream"] = f"status {status}: {reply[:120].decode()}"
    if server.subject is MNEMOSINE:
        for _ in range(2):
            _, _, headers = post(server.url + paths["cached"], b'{"message": "nonce:twice"}', server.token)
        if headers.get("X-Cache", "") != "HIT":
            server.not_yet["cached"] = "the second equal prompt is no hit"


def post(url: str, body: bytes, token: str, *, kind: str = "application/json") -> tuple[int, bytes, Any]:
    request = urllib.request.Request(url, body, {"content-type": kind, "authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


@contextmanager
def fake_provider() -> Iterator[tuple[str, Callable[..., None]]]:
    """The fake provider on the load's core: its base URL, and what changes its latency."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fake_provider"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        preexec_fn=pinned(LOAD_CORES),
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["base_url"]

        def control(**changes: float) -> None:
            post(f"{url.removesuffix('/v1')}/control", json.dumps(changes).encode(), "")

        yield url, control
    finally:
        process.terminate()
        process.wait()


def make_environment(subject: Subject) -> None:
    """Make the environment of `subject` where it is missing, with bytecode."""
    assert subject.environment is not None
    folder = HERE / ".venvs" / subject.environment
    if any(folder.glob("lib/python*/site-packages/uvicorn")):
        return
    uv = shutil.which("uv")
    subprocess.run([sys.executable, "-m", "venv", *(["--without-pip"] if uv else []), str(folder)], check=True)
    with_pip = [str(subject.python), "-m", "pip", "install", "-q"]
    with_uv = [uv, "pip", "install", "-q", "--compile-bytecode", "-p", str(subject.python)] if uv else None
    with tempfile.TemporaryDirectory() as scratch:
        # Without its hashes: pip demands one for everything as soon as it sees one, and a folder has none.
        versions = re.sub(r" *\\\n *--hash=\S+", "", (ROOT / "constraints.txt").read_text())
        (Path(scratch) / "constraints.txt").write_text(versions)
        subprocess.run([*(with_uv or with_pip), *subject.requirements], check=True, cwd=scratch)


def installed(subject: Subject) -> dict[str, float]:
    """Bytes and packages of an environment, without bytecode and without the installer."""
    assert subject.environment is not None
    (site,) = (HERE / ".venvs" / subject.environment).glob("lib/python*/site-packages")
    tools = ("pip", "setuptools", "wheel", "_distutils_hack", "pkg_resources")
    files = [
        path
        for path in site.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.relative_to(site).parts[0].startswith(tools)
    ]
    packages = [path for path in site.glob("*.dist-info") if not path.name.startswith(tools)]
    return {"bytes": sum(path.stat().st_size for path in files), "packages": len(packages)}


def spread(values: list[float]) -> dict[str, float]:
    """The median of several rounds, and their extremes."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def pinned(cores: list[int]) -> Callable[[], None]:
    def pin() -> None:
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)

    return pin


def free_port() -> int:
    import socket

    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return probing.getsockname()[1]


def facts() -> dict[str, Any]:
    """The machine and the versions; no names, no paths."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit.stdout.strip(),
        "cpu": cpu,
        "cores": len(CORES),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("fastapi", "pydantic-ai-slim", "uvicorn", "uvloop")
        },
    }


def other_load(before: tuple[Any, tuple[float, float, float]]) -> dict[str, Any]:
    """What else the machine did: load averages, and the share of time that the host took away."""
    begin, load = before
    end = psutil.cpu_times()
    total = sum(end) - sum(begin)
    return {
        "loadavg_before": load[0],
        "loadavg_after": os.getloadavg()[0],
        "steal_percent": round(100 * (end.steal - begin.steal) / total, 2) if hasattr(end, "steal") else None,
    }


def ratio(results: dict[str, Any], row: str, key: str, ours: str, theirs: str) -> float | None:
    """Our median over theirs, or `None` where one of them was not measured."""
    subjects = next(found["subjects"] for found in results["rows"] if found["name"] == row)
    if ours not in subjects or theirs not in subjects or not subjects[theirs][key]["median"]:
        return None
    return subjects[ours][key]["median"] / subjects[theirs][key]["median"]


def goals(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Each figure that we hold ourselves to: its name, must, aim, and what was reached."""

    def times(row: str, key: str, theirs: str, ours: str = "mnemosine") -> str:
        value = ratio(results, row, key, ours, theirs)
        return "not yet" if value is None else f"{value:.2f}×"

    def change(value: float | None) -> str:
        return "not yet" if value is None else f"{100 * (value - 1):+,.1f} %"

    def memory() -> float | None:
        after = {m["subject"]: m["after"] for m in results["memory"] if m["workers"] == 4}
        return after["mnemosine"] / after["before"] if len(after) == 2 else None

    cold = {name: value["median"] for name, value in results["cold_start_s"].items()}
    size = {name: value["bytes"] for name, value in results["installed"].items()}
    one, many, model, stream = ROWS[0].name, ROWS[1].name, ROWS[6].name, ROWS[7].name
    cached = next(row["subjects"].get("mnemosine") for row in results["rows"] if row["name"] == ROWS[3].name)
    before = next(row["subjects"]["before"] for row in results["rows"] if row["name"] == one)
    hit = cached["p50"]["median"] / before["p50"]["median"] if cached else None
    return [
        (
            "cached hit, 32 connections, against bare ASGI",
            "0.5×",
            "0.65×",
            times(ROWS[4].name, "per_second", "bare ASGI"),
        ),
        ("uncached, 32 connections, against FastAPI + one agent", "6×", "12×", times(many, "per_second", AGENT.name)),
        ("CPU per uncached prompt against FastAPI pass-through", "2.5×", "1.5×", times(many, "cpu_ms", FASTAPI.name)),
        (
            "20-chunk streams per second against FastAPI + one agent",
            "4×",
            "8×",
            times(stream, "per_second", AGENT.name),
        ),
        (
            "time to first token against FastAPI + one agent",
            "0.25×",
            "0.13×",
            times(stream, "first_token_p50", AGENT.name),
        ),
        ("300 ms model, 200 connections, against bare ASGI", "0.85×", "0.95×", times(model, "per_second", BARE.name)),
        (
            "response time uncached against before",
            "−90 %",
            "−95 %",
            change(ratio(results, one, "p50", "mnemosine", "before")),
        ),
        ("response time cached against before", "−99 %", "−99.5 %", change(hit)),
        (
            "concurrent requests against before (300 ms model, 200 connections)",
            "+2,000 %",
            "+4,000 %",
            change(ratio(results, model, "per_second", "mnemosine", "before")),
        ),
        ("memory, four workers after load, against before", "−50 %", "−65 %", change(memory())),
        ("cold start against before", "−65 %", "−80 %", change(cold["mnemosine"] / cold["before"])),
        ("installed size against before", "−40 %", "−50 %", change(size["mnemosine"] / size["before"])),
    ]


def markdown(results: dict[str, Any]) -> str:
    """The tables that people read."""
    machine, load = results["facts"], results["other_load"]
    lines = [
        "# Results",
        "",
        f"`{results['command']}` at commit {machine['commit']}, {machine['date']}. {machine['cores']} cores of "
        f"{machine['cpu']}, {machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + ".",
        "",
        (
            f"Medians of {results['rounds']} alternating rounds of {results['seconds']:g} s, extremes in brackets; "
            f"who is too slow for that gets one request a connection, once. Server and "
            f"load on {'different cores' if SERVER_CORES != LOAD_CORES else 'the same core'}; load average before "
            f"{load['loadavg_before']:.2f}, after {load['loadavg_after']:.2f} (our own load included), "
            f"steal {load['steal_percent']} %. The model is the fake provider of this folder."
        ),
        "",
        "| goal | must | aim | reached |",
        "|---|---|---|---|",
        *(f"| {name} | {must} | {aim} | {reached} |" for name, must, aim, reached in goals(results)),
        "",
    ]
    for row in results["rows"]:
        lines += [
            f"## {row['name']}",
            "",
            "| | requests/s | P50 ms | P95 ms | P99 ms | first token ms | CPU ms | errors | unfinished |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, values in row["subjects"].items():
            cells = [shown(values[key]) for key in ("per_second", "p50", "p95", "p99")]
            cells.append(shown(values["first_token_p50"]) if values["first_token_p50"]["median"] else "–")
            cells += [shown(values["cpu_ms"])]
            cells += [f"{values[key]['high']:.0f}" for key in ("errors", "unfinished")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["## Start, memory, size", "", "| | cold start s |", "|---|---|"]
    lines += [f"| {name} | {shown(value)} |" for name, value in results["cold_start_s"].items()]
    lines += ["", "| | workers | PSS before load MB | after MB |", "|---|---|---|---|"]
    lines += [
        f"| {m['subject']} | {m['workers']} | {m['before'] / 1e6:.0f} | {m['after'] / 1e6:.0f} |"
        for m in results["memory"]
    ]
    lines += ["", "| | installed MB | packages |", "|---|---|---|"]
    lines += [
        f"| {name} | {value['bytes'] / 1e6:.1f} | {value['packages']} |" for name, value in results["installed"].items()
    ]
    lines.append("")
    for name, kinds in results["not_yet"].items():
        lines += [f"Not yet, {name}: {kind} ({said})." for kind, said in kinds.items()]
    return "\n".join(lines).rstrip() + "\n"


def shown(value: dict[str, float]) -> str:
    def figure(number: float) -> str:
        return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"

    return f"{figure(value['median'])} ({figure(value['low'])}–{figure(value['high'])})"


if __name__ == "__main__":
    main()
