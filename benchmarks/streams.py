"""Streams: Mnemosine beside a plain FastAPI application around `agent.run_stream`, both as servers of one worker.

    python -m benchmarks.streams --rounds 5 --seconds 4

Both ask the same fake provider (a third process), which answers in 20 chunks at once. Connections are a closed loop;
every stream must hold the nonce of its prompt and end as it should. The two servers take turns in each round. Told are
streams a second and the median time to the first text, for each number of connections: medians over the rounds with
their spread, and the ratio of each round. `first text over the provider's` subtracts what the provider itself takes
for one stream at a time. Several chunks that are there at once may leave Mnemosine as one event; the text is the same.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import aiohttp

from benchmarks.uncached_prompt import PASSWORD, ROOT, reached, started
from tests.process import free_port

CONNECTIONS = (1, 50, 200)


@dataclass
class Target:
    url: str
    headers: dict[str, str]
    body: dict[str, Any]
    last_words: bytes


@dataclass
class Measured:
    streams_per_second: list[float] = field(default_factory=list[float])
    first_text_ms: list[float] = field(default_factory=list[float])


async def load(target: Target, *, connections: int, seconds: float, mark: str) -> tuple[float, float]:
    """Streams a second, and the median milliseconds to the first text."""
    first: list[float] = []
    finished = 0
    ends = perf_counter() + seconds
    stopped = ends

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal finished, stopped
        at = 0
        while perf_counter() < ends:
            nonce = f"nonce:{mark}-{number}-{at}"
            at += 1
            began = perf_counter()
            spoke: float | None = None
            said = b""
            body = json.loads(json.dumps(target.body).replace("NONCE", nonce))
            async with session.post(target.url, json=body, headers=target.headers) as reply:
                async for piece in reply.content.iter_any():
                    said += piece
                    if spoke is None and (b'"text"' in said or b'"content":"T' in said):
                        spoke = perf_counter() - began
            if reply.status != 200 or spoke is None or not said.rstrip().endswith(target.last_words):
                raise RuntimeError(f"{target.url} answered {reply.status}: {said[-300:]!r}")
            first.append(spoke * 1000)
            finished += 1
            stopped = max(stopped, perf_counter())

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        began = perf_counter()
        await asyncio.gather(*(one(session, number) for number in range(connections)))
    return finished / (stopped - began), statistics.median(first)


async def measure(base_url: str, *, rounds: int, seconds: float) -> dict[str, object]:
    environment = {
        key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV"}
    } | {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": base_url, "PYTHONPATH": str(ROOT), "PYDANTIC_AI_NO_BANNER": "1"}
    plain_port, our_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        ours = environment | {
            "DATA_DIR": folder,
            "ADMIN_PASSWORD": PASSWORD,
            "AGENTS": "benchmarks.plain_application:talker",
            "DEFAULT_MODEL": "openai-chat:gpt-4o-mini",
            "RATE_LIMIT_PER_MINUTE": "1000000",
            "PROVIDER_MAX_CONCURRENCY": "1000",
            "LOG_LEVEL": "warning",
        }
        serve = [sys.executable, "-m", "app", "serve", "--port", str(our_port)]
        plain = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.plain_application:create_app"]
        plain += ["--port", str(plain_port), "--log-level", "warning", "--no-access-log"]
        with started(plain, environment), started(serve, ours):
            async with aiohttp.ClientSession() as session:
                await reached(session, f"http://127.0.0.1:{plain_port}/livez")
                await reached(session, f"http://127.0.0.1:{our_port}/readyz")
                form = {"username": "admin", "password": PASSWORD}
                async with session.post(f"http://127.0.0.1:{our_port}/api/v1/auth/token", data=form) as reply:
                    token = (await reply.json())["access_token"]
            headers = {"Authorization": f"Bearer {token}"}
            chat = {"model": "talker", "messages": [{"role": "user", "content": "NONCE"}], "stream": True}
            prompt = {"message": "NONCE", "agent": "talker", "stream": True}
            targets = {
                "plain": Target(f"http://127.0.0.1:{plain_port}/stream", {}, prompt, b"event: done\ndata: {}"),
                "prompt": Target(f"http://127.0.0.1:{our_port}/api/v1/agent/prompt", headers, prompt, b"}"),
                "chat": Target(f"http://127.0.0.1:{our_port}/v1/chat/completions", headers, chat, b"data: [DONE]"),
            }
            provider = Target(f"{base_url}/chat/completions", {}, chat, b"data: [DONE]")
            found: dict[int, dict[str, Measured]] = {
                connections: {name: Measured() for name in targets} for connections in CONNECTIONS
            }
            _, alone_ms = await load(provider, connections=1, seconds=1, mark="provider")
            for at in range(-1, rounds):
                for connections, measured in found.items():
                    for name in sorted(targets, reverse=at % 2 == 0):
                        mark = f"{name}{at}-{connections}"
                        length = seconds if at >= 0 else 1.0  # the first round warms up
                        rate, first = await load(targets[name], connections=connections, seconds=length, mark=mark)
                        if at >= 0:
                            measured[name].streams_per_second.append(rate)
                            measured[name].first_text_ms.append(first)
    return {"provider alone, first text ms": round(alone_ms, 2)} | {
        f"{connections} connections": _told(measured, alone_ms) for connections, measured in found.items()
    }


def _told(measured: dict[str, Measured], alone_ms: float) -> dict[str, object]:
    told: dict[str, object] = {}
    plain = measured["plain"]
    for name, one in measured.items():
        told[name] = {
            "streams/s": _spread(one.streams_per_second),
            "first text ms": _spread(one.first_text_ms),
            "first text over the provider's ms": round(statistics.median(one.first_text_ms) - alone_ms, 2),
        }
        if name != "plain":
            rates = zip(one.streams_per_second, plain.streams_per_second, strict=True)
            firsts = zip(one.first_text_ms, plain.first_text_ms, strict=True)
            told[f"{name} / plain"] = {
                "streams/s": _spread([ours / theirs for ours, theirs in rates]),
                "first text": _spread([ours / theirs for ours, theirs in firsts]),
            }
    return told


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    command = [sys.executable, "-m", "benchmarks.fake_provider", "--chunks", "20"]
    fake = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert fake.stdout is not None
        base_url = json.loads(fake.stdout.readline())["base_url"]
        print(json.dumps(asyncio.run(measure(base_url, rounds=options.rounds, seconds=options.seconds)), indent=2))
    finally:
        fake.terminate()
        fake.wait()


if __name__ == "__main__":
    main()
