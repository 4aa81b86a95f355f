"""What recording costs a cached hit: `python -m benchmarks.cost_of_metrics`.

One request after another through the front door of the whole application, in this process, in alternating rounds: with
everything that is measured, and with none of it (no counters, no histograms, no stories, no reports to other workers,
no watch over the loop). CPU time, since the machine may be shared; median of the ratios with extremes.
There is no socket in it. `--served` compares two servers over HTTP instead, with 32 connections: ours, and the same one
that records nothing (`benchmarks.unmeasured_server`). It is what a hit's rate is judged by.
"""

import argparse
import asyncio
import os
import socket
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.api.front_door import FrontDoor
from app.config import load_settings
from app.core.metrics import Metrics
from app.load import NONCE
from app.main import create_app
from app.runtime import prepare
from benchmarks.running import LOAD_CORES, Running, fake_provider, homes, pinned, send, serve
from benchmarks.subjects import MNEMOSINE

PASSWORD = "a password for benchmarks"


def request(token: str) -> tuple[dict[str, Any], bytes]:
    body = b'{"message": "Hello, world!"}'
    headers = [
        (b"host", b"127.0.0.1"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"authorization", b"Bearer " + token.encode()),
    ]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/api/v1/agent/prompt",
        "raw_path": b"/api/v1/agent/prompt",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    return scope, body


async def ask(door: FrontDoor, scope: dict[str, Any], body: bytes) -> int:
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    await door({**scope}, receive, send)
    return status


def nothing(*_: object, **__: object) -> float:
    """Record nothing."""
    return 0.0


async def round_of(door: FrontDoor, token: str, hits: int) -> float:
    """Microseconds of CPU for one hit."""
    scope, body = request(token)
    began = process_time()
    for number in range(hits):
        status = await ask(door, scope, body)
        assert status == 200, status
        if number % 100 == 0:
            await asyncio.sleep(0)  # the background tasks get their turn, as in a server
    return (process_time() - began) / hits * 1e6


def single(record: Callable[[], object], times: int = 200_000) -> float:
    """Microseconds for one call."""
    began = perf_counter()
    for _ in range(times):
        record()
    return (perf_counter() - began) / times * 1e6


async def measure(rounds: int, hits: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            env_file=None,
            data_dir=Path(folder),
            admin_password=SecretStr(PASSWORD),
            log_level="warning",
            rate_limit_per_minute=0,
        )
        await prepare(settings)
        door = create_app(settings)
        async with door.api.router.lifespan_context(door.api):
            runtime = door.api.state.runtime
            await runtime.agent_room
            token = (await runtime.callers.sign_in("admin", PASSWORD, peer="127.0.0.1")).token
            await round_of(door, token, 2000)
            with_all: list[float] = []
            with_none: list[float] = []
            for _ in range(rounds):
                with_all.append(await round_of(door, token, hits))
                with ExitStack() as stack:
                    stack.enter_context(patch.object(door.metrics, "record_request", nothing))
                    stack.enter_context(patch.object(door.metrics.stories, "add", nothing))
                    stack.enter_context(patch.object(runtime.totals, "report", _pause))
                    with_none.append(await round_of(door, token, hits))
            began = process_time()
            for _ in range(20):
                await runtime.totals.report()
            report_ms = (process_time() - began) / 20 * 1000
    ratios = sorted(a / b - 1 for a, b in zip(with_all, with_none, strict=True))
    for name, found in (("everything", with_all), ("nothing", with_none)):
        print(f"with {name:<12} {statistics.median(found):6.1f} µs of CPU a hit  ({min(found):.1f}–{max(found):.1f})")
    print(f"difference        {100 * statistics.median(ratios):6.1f} %  ({100 * ratios[0]:.1f}–{100 * ratios[-1]:.1f})")
    print(f"one report        {report_ms:6.2f} ms of CPU, twice a second: {report_ms / 5:.2f} % of a core")
    metrics = Metrics()
    histogram = metrics.histogram("database_wait_seconds")
    counter = metrics.counter("cache_stores")
    print(f"a histogram       {single(lambda: histogram.record(0.0123)):6.2f} µs")
    print(f"a counter         {single(counter.add):6.2f} µs")
    whole = single(lambda: metrics.record_request("POST /x", 200, 0.012, 0.01, request_id="r"))
    print(f"a whole request   {whole:6.2f} µs (two histograms, a counter, an example)")


async def _pause() -> None:
    await asyncio.sleep(0)


def cpu_s(server: Running) -> float:
    """CPU that all threads of `server` have had, in seconds: the scheduler's account in nanoseconds, not its ticks."""
    accounts = [
        task.read_text()
        for process in server.processes()
        for task in Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    ]
    return sum(int(account.split()[0]) for account in accounts) / 1e9


def hit_all(lines: list[socket.socket], sent: bytes, times: int) -> None:
    """Ask on all connections at once, and read all answers, `times` times."""
    for _ in range(times):
        for line in lines:
            line.sendall(sent)
        for line in lines:
            reply = line.recv(65536)
            head, found, body = reply.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(body) < length:
                body += line.recv(65536)
            assert found, reply
            assert head.startswith(b"HTTP/1.1 200 "), head
            assert b"x-cache: HIT" in head, head


def serve_both(rounds: int, hits: int, connections: int = 32) -> None:
    """Print the CPU of a hit with and without recording, and the median of their ratios with its 95 % interval.

    Many short turns, each server first in every other: what else the machine does falls on both alike.
    """
    command = ("-m", "benchmarks.unmeasured_server", *MNEMOSINE.command[2:])
    measured = replace(MNEMOSINE, environment=None)
    unmeasured = replace(MNEMOSINE, name="unmeasured", environment=None, command=command)
    body = MNEMOSINE.ways["cached"].body.replace(NONCE, "metrics").encode()
    pinned(LOAD_CORES)()
    with ExitStack() as stack:
        provider = stack.enter_context(fake_provider())
        folders = stack.enter_context(homes((measured, unmeasured)))
        up = [stack.enter_context(serve(one, provider, folders[one.name])) for one in (measured, unmeasured)]
        open_lines: list[list[socket.socket]] = []
        asked: list[bytes] = []
        for server in up:
            for _ in range(2):
                assert send(server, MNEMOSINE.ways["cached"], "metrics")[0] == 200
            address = urlsplit(server.url)
            head = (
                f"POST {MNEMOSINE.ways['cached'].path} HTTP/1.1\r\nhost: {address.netloc}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"authorization: Bearer {server.token}\r\n\r\n"
            )
            asked.append(head.encode() + body)
            place = (str(address.hostname), int(address.port or 80))
            lines = [socket.create_connection(place, timeout=60) for _ in range(connections)]
            open_lines.append([stack.enter_context(line) for line in lines])
        times = max(1, hits // connections)
        found: list[list[float]] = [[], []]
        for turn in range(-2, rounds):
            for at in (0, 1) if turn % 2 else (1, 0):
                began = cpu_s(up[at])
                hit_all(open_lines[at], asked[at], times)
                used_s = cpu_s(up[at]) - began
                if turn >= 0:  # the first ones warm up
                    found[at].append(used_s / (times * connections) * 1e6)
    for name, one in zip(("everything", "nothing"), found, strict=True):
        low, _, high = statistics.quantiles(one, n=4)
        print(f"with {name:<12} {statistics.median(one):6.1f} µs of CPU a hit  (quarters {low:.1f}–{high:.1f})")
    ratios = sorted(a / b - 1 for a, b in zip(*found, strict=True))
    # Of n values in order, the median of what they were drawn from lies between these two 95 times of 100.
    reach = int(0.98 * rounds**0.5) + 1
    low, high = ratios[max(0, rounds // 2 - reach)], ratios[min(rounds - 1, rounds // 2 + reach)]
    print(f"difference        {100 * statistics.median(ratios):6.2f} %  (95 %: {100 * low:.2f}–{100 * high:.2f})")
    saved = 1 / (1 + statistics.median(ratios)) - 1
    print(f"of the rate       {100 * saved:6.2f} %, {rounds} turns of {times * connections} hits each")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_of_metrics", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--hits", type=int, default=3000)
    parser.add_argument("--served", action="store_true", help="two servers over HTTP; take --rounds 200")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if options.served:
        serve_both(options.rounds, options.hits)
    else:
        asyncio.run(measure(options.rounds, options.hits))


if __name__ == "__main__":
    main()
