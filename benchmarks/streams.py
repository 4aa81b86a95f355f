"""Streams: Mnemosine beside a plain FastAPI application around `agent.run_stream`, both as servers of one worker.

    python -m benchmarks.streams --rounds 5 --each 4

Both ask the same fake provider (a third process), which answers in 20 chunks at once. Connections are a closed loop
of `each` streams for each of them (`app/load.py`); every stream must hold the nonce of its prompt and end as it should.
The servers take turns in each round. Told are, for each number of connections, streams a second, the median time to the
first text, and the CPU time that the server's process spends on a stream: medians over the rounds with their spread,
and the ratio of each round. On a busy machine the last is the honest one. `first text over the provider's` subtracts
what the provider itself takes for one stream at a time. Several chunks that are there at once may leave Mnemosine as
one event; the text is the same.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, field
from typing import Any

import psutil
import uvloop

from app.load import Load, Report, run_load
from benchmarks.beside_plain import Server, fake_provider, open_both

CONNECTIONS = (1, 50, 200)


@dataclass
class Target(Server):
    body: dict[str, Any]


@dataclass
class Measured:
    streams_per_second: list[float] = field(default_factory=list[float])
    first_text_ms: list[float] = field(default_factory=list[float])
    cpu_us: list[float] = field(default_factory=list[float])


async def load(target: Target, *, connections: int, streams: int) -> tuple[Report, float]:
    """What the load met, and the microseconds of CPU that the server spent on a stream."""
    before = target.cpu_s()
    report = await run_load(
        Load(
            target.url,
            [json.dumps(target.body)],
            headers=target.headers,
            connections=connections,
            requests=streams,
            streamed=True,
        )
    )
    if report.errors:
        raise RuntimeError(f"{target.url}: {report.errors}, {report.examples}")
    return report, (target.cpu_s() - before) / report.completed * 1e6


async def measure(base_url: str, provider_pid: int, *, rounds: int, each: int) -> dict[str, object]:
    async with open_both(base_url, "talker", PROVIDER_MAX_CONCURRENCY="1000") as (plain, ours):
        said = "nonce:{nonce}"
        chat = {"model": "talker", "messages": [{"role": "user", "content": said}], "stream": True}
        prompt = {"message": said, "agent": "talker", "stream": True}
        targets = {
            "plain": Target(plain.process, f"{plain.url}/stream", {}, prompt),
            "prompt": Target(ours.process, f"{ours.url}/api/v1/agent/prompt", ours.headers, prompt),
            "chat": Target(ours.process, f"{ours.url}/v1/chat/completions", ours.headers, chat),
        }
        provider = Target(psutil.Process(provider_pid), f"{base_url}/chat/completions", {}, chat)
        found: dict[int, dict[str, Measured]] = {
            connections: {name: Measured() for name in targets} for connections in CONNECTIONS
        }
        alone, provider_us = await load(provider, connections=1, streams=200)
        for at in range(-1, rounds):
            for connections, measured in found.items():
                for name in sorted(targets, reverse=at % 2 == 0):
                    streams = max(connections * each, 100)
                    report, cpu_us = await load(targets[name], connections=connections, streams=streams)
                    if at >= 0:  # the first round warms up
                        measured[name].streams_per_second.append(report.per_second)
                        measured[name].first_text_ms.append(report.first_token_ms.p50)
                        measured[name].cpu_us.append(cpu_us)
    alone_ms = alone.first_token_ms.p50
    return {
        "provider alone": {
            "first text ms": round(alone_ms, 2),
            "its cpu us": round(provider_us),
            "the load's cpu us": round(alone.generator_cpu_s / alone.completed * 1e6),
        }
    } | {f"{connections} connections": _told(measured, alone_ms) for connections, measured in found.items()}


def _told(measured: dict[str, Measured], alone_ms: float) -> dict[str, object]:
    told: dict[str, object] = {}
    plain = measured["plain"]
    for name, one in measured.items():
        told[name] = {
            "streams/s": _spread(one.streams_per_second),
            "first text ms": _spread(one.first_text_ms),
            "first text over the provider's ms": round(statistics.median(one.first_text_ms) - alone_ms, 2),
            "cpu us a stream": _spread(one.cpu_us),
        }
        if name != "plain":
            told[f"{name} / plain"] = {
                "streams/s": _ratio(one.streams_per_second, plain.streams_per_second),
                "first text": _ratio(one.first_text_ms, plain.first_text_ms),
                "cpu": _ratio(one.cpu_us, plain.cpu_us),
            }
    return told


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    return _spread([one / other for one, other in zip(ours, theirs, strict=True)])


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=4)
    options = parser.parse_args()
    with fake_provider("--chunks", "20") as (base_url, pid):
        found = uvloop.run(measure(base_url, pid, rounds=options.rounds, each=options.each))
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
