"""CPU per uncached prompt: Mnemosine beside a plain FastAPI application around `agent.run`, both as servers.

    python -m benchmarks.uncached_prompt --rounds 9 --prompts 300

Both are processes of one worker over HTTP, ask the same fake provider (a third process, which answers at once), and
take turns. What counts is the CPU time of the server's process over a batch of prompts that were never asked before.
Ours also checks a token, keeps the answer and records the run; the plain application does none of that.
Each kind of prompt is a pair: `talk` (no tool), `tool idle` (one tool, not called), `tool called` (two model requests).
Prints medians over the rounds, their spread, and the ratio of each round as JSON.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import aiohttp
import psutil

from tests.process import free_port

ROOT = Path(__file__).parent.parent
PASSWORD = "a password for the benchmark"
KINDS = {
    "talk": ("talker", "prompt {}"),
    "tool idle": ("weatherman", "prompt {}"),
    "tool called": ("weatherman", 'call:weather {{"city": "place {}"}}'),
}


@dataclass
class Server:
    process: psutil.Process
    url: str
    headers: dict[str, str]

    def cpu_s(self) -> float:
        used = self.process.cpu_times()
        return used.user + used.system


@contextmanager
def fake_provider(*options: str) -> Generator[tuple[str, int]]:
    """The base URL and the pid of a fake provider with these options, for as long as the block lasts."""
    command = [sys.executable, "-m", "benchmarks.fake_provider", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["base_url"], process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def started(command: list[str], environment: dict[str, str]) -> Generator[int]:
    """The process id of `command`, ended with the block."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


async def reached(session: aiohttp.ClientSession, url: str) -> None:
    deadline = monotonic() + 60
    while True:
        try:
            async with session.get(url) as reply:
                if reply.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        if monotonic() > deadline:
            raise TimeoutError(url)
        await asyncio.sleep(0.05)


async def batch(session: aiohttp.ClientSession, server: Server, kind: str, *, mark: str, prompts: int) -> float:
    """CPU microseconds of the server for each of `prompts` prompts, eight at once. Every answer is looked at."""
    agent, text = KINDS[kind]
    numbers = iter(range(prompts))

    async def ask() -> None:
        for number in numbers:
            nonce = f"{mark}-{number}"
            body = {"message": text.format(nonce), "agent": agent}
            async with session.post(server.url, json=body, headers=server.headers) as reply:
                said = await reply.json()
            if reply.status != 200 or nonce not in said["response"] or said.get("cached"):
                raise RuntimeError(f"{server.url} answered {reply.status}: {said}")

    before = server.cpu_s()
    await asyncio.gather(*(ask() for _ in range(8)))
    return (server.cpu_s() - before) / prompts * 1e6


async def measure(base_url: str, *, rounds: int, prompts: int) -> dict[str, object]:
    environment = {
        key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV"}
    } | {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": base_url, "PYTHONPATH": str(ROOT), "PYDANTIC_AI_NO_BANNER": "1"}
    plain_port, our_port = free_port(), free_port()
    agents = "benchmarks.plain_application:talker,benchmarks.plain_application:weatherman"
    with tempfile.TemporaryDirectory() as folder:
        ours = environment | {
            "DATA_DIR": folder,
            "ADMIN_PASSWORD": PASSWORD,
            "AGENTS": agents,
            "DEFAULT_MODEL": "openai-chat:gpt-4o-mini",
            "RATE_LIMIT_PER_MINUTE": "1000000",
            "LOG_LEVEL": "warning",
        }
        serve = [sys.executable, "-m", "app", "serve", "--port", str(our_port)]
        factory = "benchmarks.plain_application:create_app"
        plain = [sys.executable, "-m", "uvicorn", "--factory", factory, "--port", str(plain_port)]
        plain += ["--log-level", "warning", "--no-access-log"]
        with started(plain, environment) as plain_pid, started(serve, ours) as our_pid:
            async with aiohttp.ClientSession() as session:
                await reached(session, f"http://127.0.0.1:{plain_port}/livez")
                await reached(session, f"http://127.0.0.1:{our_port}/readyz")
                form = {"username": "admin", "password": PASSWORD}
                async with session.post(f"http://127.0.0.1:{our_port}/api/v1/auth/token", data=form) as reply:
                    token = (await reply.json())["access_token"]
                servers = {
                    "plain": Server(psutil.Process(plain_pid), f"http://127.0.0.1:{plain_port}/prompt", {}),
                    "mnemosine": Server(
                        psutil.Process(our_pid),
                        f"http://127.0.0.1:{our_port}/api/v1/agent/prompt",
                        {"Authorization": f"Bearer {token}"},
                    ),
                }
                costs: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in servers} for kind in KINDS}
                for at in range(-1, rounds):
                    for kind, cost in costs.items():
                        for name in sorted(servers, reverse=at % 2 == 0):
                            used = await batch(session, servers[name], kind, mark=f"{name}{at}", prompts=prompts)
                            if at >= 0:  # the first round warms up
                                cost[name].append(used)
    return {kind: _told(cost["plain"], cost["mnemosine"]) for kind, cost in costs.items()}


def _told(plain: list[float], ours: list[float]) -> dict[str, object]:
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    told: dict[str, object] = {
        f"{name} cpu_us": {"median": round(statistics.median(all_)), "min": round(min(all_)), "max": round(max(all_))}
        for name, all_ in (("plain", plain), ("mnemosine", ours))
    }
    rounded = [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]
    return told | {"ratio": dict(zip(("median", "min", "max"), rounded, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=300)
    options = parser.parse_args()
    with fake_provider() as (base_url, _):
        found = asyncio.run(measure(base_url, rounds=options.rounds, prompts=options.prompts))
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
