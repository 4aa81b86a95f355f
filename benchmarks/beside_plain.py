"""Mnemosine beside a plain FastAPI application around `agent.run`: servers of one worker each, on one fake provider."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import aiohttp
import psutil

from tests.process import free_port

ROOT = Path(__file__).parent.parent
PASSWORD = "a password for the benchmark"


@dataclass
class Server:
    """One of them; `headers` sign a request."""

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


@asynccontextmanager
async def open_both(base_url: str, *agents: str, **settings: str) -> AsyncGenerator[tuple[Server, Server]]:
    """The plain application, and Mnemosine with these `agents` of it; both answer when the block begins."""
    environment = {
        key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV"}
    } | {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": base_url, "PYTHONPATH": str(ROOT), "PYDANTIC_AI_NO_BANNER": "1"}
    plain_port, our_port = free_port(), free_port()
    plain = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.plain_application:create_app"]
    plain += ["--port", str(plain_port), "--log-level", "warning", "--no-access-log"]
    serve = [sys.executable, "-m", "app", "serve", "--port", str(our_port)]
    with tempfile.TemporaryDirectory() as folder:
        ours = environment | {
            "DATA_DIR": folder,
            "ADMIN_PASSWORD": PASSWORD,
            "AGENTS": ",".join(f"benchmarks.plain_application:{agent}" for agent in agents),
            "DEFAULT_MODEL": "openai-chat:gpt-4o-mini",
            "RATE_LIMIT_PER_MINUTE": "1000000",
            "LOG_LEVEL": "warning",
            **settings,
        }
        with _started(plain, environment) as plain_pid, _started(serve, ours) as our_pid:
            one = Server(psutil.Process(plain_pid), f"http://127.0.0.1:{plain_port}", {})
            other = Server(psutil.Process(our_pid), f"http://127.0.0.1:{our_port}", {})
            async with aiohttp.ClientSession() as session:
                await _reached(session, f"{one.url}/livez")
                await _reached(session, f"{other.url}/readyz")
                form = {"username": "admin", "password": PASSWORD}
                async with session.post(f"{other.url}/api/v1/auth/token", data=form) as reply:
                    other.headers["Authorization"] = f"Bearer {(await reply.json())['access_token']}"
            yield one, other


@contextmanager
def _started(command: list[str], environment: dict[str, str]) -> Generator[int]:
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


async def _reached(session: aiohttp.ClientSession, url: str) -> None:
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
