"""What recording costs a cached hit: `python -m benchmarks.cost_of_metrics`.

One request after another through the front door of the whole application, in this process, in alternating rounds: with
everything that is measured, and with none of it (`benchmarks.unmeasured_server` says what that is). CPU time, since the
machine may be shared; median of the ratios with extremes. There is no socket in it.

`--served` measures a server over HTTP instead, on 32 connections, that records and does not record in turn. It is what
a hit's rate is judged by. With `--control` it records in all turns: what is told then is the
error of the instrument.
"""

import argparse
import asyncio
import os
import socket
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from time import perf_counter, process_time, sleep
from unittest.mock import patch
from urllib.parse import urlsplit

import httpx2
from pydantic import SecretStr

from app.api.front_door import FrontDoor
from app.api.known_questions import PATH
from app.config import load_settings
from app.core.metrics import Metrics
from app.core.run import Answer, Usage
from app.core.story import Story
from app.installation import prepare
from app.load import NONCE
from app.main import create_app
from benchmarks.running import LOAD_CORES, Running, fake_provider, homes, pinned, send, serve
from benchmarks.subjects import MNEMOSINE
from benchmarks.unmeasured_server import ALL, INSTEAD, NOTHING, REQUESTS

PASSWORD = "a password for benchmarks"
QUESTIONS = 64
"""Asked in turn, since the cache follows a quarter of its keys more closely than the others."""
QUIET_S = 2.0


async def round_of(door: FrontDoor, token: str, hits: int) -> float:
    """Microseconds of CPU for one hit."""
    headers = [
        (b"host", b"127.0.0.1"),
        (b"content-type", b"application/json"),
        (b"authorization", b"Bearer " + token.encode()),
    ]
    bodies = cycle([b'{"message": "Hello, world, %d!"}' % number for number in range(QUESTIONS)])
    began = process_time()
    for number in range(hits):
        body = next(bodies)
        if door.answer_at_once(headers, body) is None:
            # Once a second the credential is looked up anew, which has to wait.
            await door.api.state.runtime.callers.recognise(token)
            assert door.answer_at_once(headers, body) is not None
        if number % 100 == 0:
            await asyncio.sleep(0)  # the background tasks get their turn, as in a server
    return (process_time() - began) / hits * 1e6


async def teach(door: FrontDoor, token: str) -> None:
    """Have every question answered twice: by the model, and from memory, where the short way learns it."""
    transport = httpx2.ASGITransport(door)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
        for number in 2 * [*range(QUESTIONS)]:
            content = b'{"message": "Hello, world, %d!"}' % number
            reply = await client.post(PATH, content=content, headers={"content-type": "application/json"})
            assert reply.status_code == 200, reply.text


def single(record: Callable[[], object], *, times: int = 2000, rounds: int = 100) -> float:
    """Microseconds for one call, in the quietest of all rounds: what it does is the same in each."""
    found: list[float] = []
    for _ in range(rounds):
        began = perf_counter()
        for _ in range(times):
            record()
        found.append(perf_counter() - began)
    return min(found) / times * 1e6


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
            await teach(door, token)
            await round_of(door, token, 2000)
            with_all: list[float] = []
            with_none: list[float] = []
            for _ in range(rounds):
                with_all.append(await round_of(door, token, hits))
                with ExitStack() as stack:
                    for owner, name, instead in INSTEAD:
                        stack.enter_context(patch.object(owner, name, instead))
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
    told = Answer(id="r", output="", agent="default", model="m", usage=Usage(), cost_usd=None, model_s=0.1, cache="HIT")
    histogram = metrics.histogram("database_wait_seconds")
    counter = metrics.counter("cache_stores")
    print(f"a histogram       {single(lambda: histogram.record(0.0123)):6.2f} µs")
    print(f"a counter         {single(counter.add):6.2f} µs")
    hit = ("admin", told, 1.0, 3600.0)
    whole = single(lambda: metrics.record_request("POST /x", 200, 0.012, 0.01, "r", 1.0, Story("admin")))
    print(f"a prompt          {whole:6.2f} µs (two histograms, a counter, an example, a story)")
    whole = single(lambda: metrics.record_hit("POST /x", 0.0001, "r", 1.0, hit))
    print(f"a hit             {whole:6.2f} µs (two histograms, a counter)")


def cpu_s(server: Running) -> float:
    """CPU that all threads of `server` have had, in seconds: the scheduler's account in nanoseconds, not its ticks."""
    accounts = [
        task.read_text()
        for process in server.processes()
        for task in Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    ]
    return sum(int(account.split()[0]) for account in accounts) / 1e9


def hit_all(lines: list[socket.socket], asked: Iterator[bytes], times: int) -> None:
    """Ask on all connections at once, and read all answers, `times` times."""
    for _ in range(times):
        for line, sent in zip(lines, asked, strict=False):
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


def compare_served(rounds: int, hits: int, connections: int, *, control: bool) -> None:
    """Print the CPU of a hit with and without recording, and what the reports take beside them.

    One server in many turns, each way first in every other: what else the machine does falls on both alike. Reports
    come by the clock, and a machine that is shared gives a server more clock for its CPU than one of its own: hence
    they are left out of the turns, and measured for themselves while hardly anybody asks. As a `control` the server
    does the same in all turns.
    """
    subject = replace(
        MNEMOSINE, environment=None, command=("-m", "benchmarks.unmeasured_server", *MNEMOSINE.command[2:])
    )
    pinned(LOAD_CORES)()
    with ExitStack() as stack:
        provider = stack.enter_context(fake_provider())
        folders = stack.enter_context(homes((subject,)))
        server = stack.enter_context(serve(subject, provider, folders[subject.name]))
        place = (str(urlsplit(server.url).hostname), int(urlsplit(server.url).port or 80))
        asked = cycle(questions(server))
        lines = [stack.enter_context(socket.create_connection(place, timeout=60)) for _ in range(connections)]
        times = max(1, hits // connections)

        def turn_of_hits() -> float:
            hit_all(lines, asked, 20)  # the interpreter finds out what has become of the methods
            began = cpu_s(server)
            hit_all(lines, asked, times)
            return (cpu_s(server) - began) / (times * connections) * 1e6

        def quiet_turn() -> float:
            began, began_at = cpu_s(server), perf_counter()
            while perf_counter() < began_at + QUIET_S:
                hit_all(lines[:1], asked, 10)
                sleep(0.05)
            return 100 * (cpu_s(server) - began) / (perf_counter() - began_at)

        def in_turn(turns: int, action: Callable[[], float], ways: tuple[int, int]) -> tuple[list[float], list[float]]:
            found: tuple[list[float], list[float]] = ([], [])
            for turn in range(-1, turns):
                for at in (0, 1) if turn % 2 else (1, 0):
                    server.process.send_signal(ways[0] if control else ways[at])
                    measured = action()
                    if turn >= 0:  # the first one warms up
                        found[at].append(measured)
            return found

        found = in_turn(rounds, turn_of_hits, (REQUESTS, NOTHING))
        quiet = in_turn(max(2, rounds // 10), quiet_turn, (ALL, REQUESTS))
    for name, one in zip(("recording", "recording" if control else "nothing"), found, strict=True):
        low, _, high = statistics.quantiles(one, n=4)
        print(f"with {name:<12} {statistics.median(one):6.2f} µs of CPU a hit  (quarters {low:.2f}–{high:.2f})")
    ratios = sorted(a / b - 1 for a, b in zip(*found, strict=True))
    more = statistics.median(ratios)
    # Of n values in order, the median of what they were drawn from lies between these two 95 times of 100.
    reach = int(0.98 * rounds**0.5) + 1
    low, high = ratios[max(0, rounds // 2 - reach)], ratios[min(rounds - 1, rounds // 2 + reach)]
    print(f"difference        {100 * more:6.2f} %  (95 %: {100 * low:.2f}–{100 * high:.2f})")
    by_clock = sorted(a - b for a, b in zip(*quiet, strict=True))
    reports = statistics.median(by_clock)
    print(f"the reports       {reports:6.2f} % of a core  ({by_clock[0]:.2f}–{by_clock[-1]:.2f})")
    kept = (1 - reports / 100) / (1 + more)
    print(f"of the rate       {100 * (kept - 1):6.2f} %, {rounds} turns of {times * connections} hits each")


def questions(server: Running) -> list[bytes]:
    """Requests that `server` answers from memory."""
    way = MNEMOSINE.ways["cached"]
    asked: list[bytes] = []
    for number in range(QUESTIONS):
        for _ in range(2):
            assert send(server, way, f"metrics-{number}")[0] == 200
        body = way.body.replace(NONCE, f"metrics-{number}").encode()
        head = (
            f"POST {way.path} HTTP/1.1\r\nhost: {urlsplit(server.url).netloc}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"authorization: Bearer {server.token}\r\n\r\n"
        )
        asked.append(head.encode() + body)
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_of_metrics", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--hits", type=int, default=3000)
    parser.add_argument("--served", action="store_true", help="a server over HTTP; take --rounds 200 --hits 2000")
    parser.add_argument("--control", action="store_true", help="with --served: record in all turns")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if options.served:
        compare_served(options.rounds, options.hits, 32, control=options.control)
    else:
        asyncio.run(measure(options.rounds, options.hits))


if __name__ == "__main__":
    main()
