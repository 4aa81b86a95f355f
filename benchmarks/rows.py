"""Kinds of load, and how one of them is measured on all servers in turn."""

import math
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.running import Bystanders, Provider, Running, ask, settle


@dataclass(frozen=True)
class Row:
    """A kind of load, its connections, and what the provider does meanwhile."""

    name: str
    kind: str
    connections: int
    latency_s: float = 0.0
    chunk_gap_s: float = 0.0
    without: tuple[str, ...] = ()
    """Subjects that are not measured in it."""
    only_full: bool = False


SLOW = ("before",)
ONE = Row("uncached, 1 connection", "uncached", 1)
MANY = Row("uncached, 32 connections", "uncached", 32)
TOOL_IDLE = Row("uncached, an agent with one tool, 32 connections", "tool idle", 32)
TOOL_CALLED = Row("uncached, one tool called, 32 connections", "tool called", 32)
HIT_ONE = Row("cached, 1 connection", "cached", 1)
HIT_MANY = Row("cached, 32 connections", "cached", 32)
SLOW_MODEL = Row(
    "uncached, 300 ms model, 200 connections", "uncached", 200, latency_s=0.3, without=("FastAPI pass-through",)
)
STREAMS = Row("20-chunk streams, 5 ms apart, 200 connections", "stream", 200, chunk_gap_s=0.005, without=SLOW)
ROWS = (
    ONE,
    MANY,
    Row("uncached, 200 connections", "uncached", 200),
    TOOL_IDLE,
    TOOL_CALLED,
    HIT_ONE,
    HIT_MANY,
    Row("cached, 200 connections", "cached", 200),
    SLOW_MODEL,
    STREAMS,
    Row("uncached, 50 ms model, 32 connections", "uncached", 32, latency_s=0.05, only_full=True),
    Row("20-chunk streams, all at once, 200 connections", "stream", 200, without=SLOW, only_full=True),
    Row("20-chunk streams, 5 ms apart, 1 connection", "stream", 1, chunk_gap_s=0.005, only_full=True),
)


def measure_row(
    row: Row, up: list[Running], provider: Provider, *, rounds: int, seconds: float, rates: dict[str, float]
) -> dict[str, Any]:
    """What `row` shows, by subject: a list of rounds for each figure.

    `rates` is what is known of each subject's requests a second, and is kept up to date: who is too slow to answer
    every connection twice within `seconds` gets a longer window, and who would take very long one request a connection.
    """
    say(row.name)
    provider.control(latency_s=row.latency_s, chunk_gap_s=row.chunk_gap_s)
    able = [one for one in up if row.kind in one.subject.ways and row.kind not in one.not_able]
    able = [one for one in able if one.subject.name not in row.without]
    measured: dict[str, list[dict[str, float]]] = {one.subject.name: [] for one in able}
    failed: dict[str, str] = {}
    for turn in range(rounds):
        for server in able if turn % 2 == 0 else reversed(able):
            name = server.subject.name
            known = f"{name} {row.kind}"
            needed_s = 2 * row.connections / rates.get(known, 1e9)
            if name in failed or (needed_s > 4 * seconds and measured[name]):
                continue  # once is enough, the others wait
            try:
                found = _measure(server, row, provider, seconds=seconds, needed_s=needed_s)
                if found["answered"] < row.connections and needed_s <= 4 * seconds:
                    rates[known] = max(0.1, found["per_second"])
                    needed_s = 2 * row.connections / rates[known]
                    found = _measure(server, row, provider, seconds=seconds, needed_s=needed_s)
            except RuntimeError as error:
                failed[name] = str(error)
                continue
            measured[name].append(found)
            if not row.latency_s:
                rates[known] = max(0.1, found["per_second"])
    provider.control(latency_s=0.0, chunk_gap_s=0.0)
    subjects = {name: {key: [one[key] for one in runs] for key in runs[0]} for name, runs in measured.items() if runs}
    return {"name": row.name, "subjects": subjects, "failed": failed}


def _measure(server: Running, row: Row, provider: Provider, *, seconds: float, needed_s: float) -> dict[str, float]:
    settle(server)
    bystanders = Bystanders(server.cpu_s, provider.cpu_s)
    began = server.cpu_s()
    if needed_s > 4 * seconds:
        report = ask(server, row.kind, connections=row.connections, requests=max(row.connections, 10))
    elif row.latency_s:
        # Answers come in waves as long as the model thinks: a window would count one more or less of them.
        waves = math.ceil(3 * seconds / max(row.latency_s, needed_s / 2))
        report = ask(server, row.kind, connections=row.connections, requests=waves * row.connections)
    else:
        window_s = max(seconds, needed_s)
        report = ask(server, row.kind, connections=row.connections, seconds=window_s, warmup_s=min(0.5, window_s / 3))
    used_s, others = server.cpu_s() - began, bystanders.percent()
    errors: dict[str, int] = report["errors"]
    unfinished = errors.pop("unfinished", 0)
    if errors:
        say(f"  {server.subject.name}: {errors} {report['examples'][:1]}")
    return {
        "per_second": report["per_second"],
        **{name: report["latency_ms"][name] for name in ("p50", "p95", "p99")},
        "first_token_p50": report["first_token_ms"]["p50"],
        "cpu_ms": 1000 * used_s / max(1, report["completed"]),
        "answered": report["answered"],
        "errors": sum(errors.values()),
        "unfinished": unfinished,
        "others_percent": others,
    }


def say(line: str) -> None:
    """Tell whoever waits how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def spread(values: list[float]) -> dict[str, float]:
    """The median of several rounds, and their extremes."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
