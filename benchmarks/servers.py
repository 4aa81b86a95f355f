"""The candidates for several workers, beside each other: what they lose, what they weigh, and how fast they are.

`python -m benchmarks.servers` in an environment that also holds granian and uvicorn-worker. A bare ASGI application
that waits as long as its query string says, and imports Mnemosine's stack, so that memory is told truthfully.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.siege import Book, get, siege

ROOT = Path(__file__).parent.parent
APP = """
import asyncio, os
if os.environ.get("HEAVY"):
    import app.main, app.core.prompt_service
async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    wait = float(scope["query_string"] or 0)
    if wait:
        await asyncio.sleep(wait)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""
FREEZE = "import gc\ndef pre_fork(server, worker):\n    gc.freeze()\n"


def command(name: str, port: int, workers: int, max_requests: int) -> list[str]:
    bind = f"127.0.0.1:{port}"
    py = [sys.executable, "-m"]
    match name:
        case "uvicorn":
            limit = ["--limit-max-requests", str(max_requests)] if max_requests else []
            return [*py, "uvicorn", "bare:application", "--port", str(port), "--workers", str(workers), "--log-level",
                    "critical", "--no-access-log", "--http", "httptools", *limit]  # fmt: skip
        case "gunicorn-asgi" | "gunicorn-uvicorn":
            kind = "asgi" if name == "gunicorn-asgi" else "uvicorn_worker.UvicornWorker"
            return [*py, "gunicorn", "bare:application", "-b", bind, "-w", str(workers), "-k", kind, "--preload", "-c",
                    "freeze.py", "--log-level", "critical", "--no-control-socket", "--max-requests",
                    str(max_requests)]  # fmt: skip
        case "granian":
            return [*py, "granian", "--interface", "asgi", "bare:application", "--port", str(port), "--workers",
                    str(workers), "--no-log"]  # fmt: skip
        case "ours":
            return [*py, "benchmarks.our_server", str(port), str(workers), str(max_requests)]
    raise SystemExit(f"unknown candidate {name}")


class Running:
    def __init__(self, name: str, *, workers: int = 2, max_requests: int = 0, heavy: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        folder = Path(tempfile.mkdtemp(prefix="mnemosine-servers-"))
        (folder / "bare.py").write_text(APP)
        (folder / "freeze.py").write_text(FREEZE)
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        env |= {"PYTHONPATH": f"{folder}:{ROOT}:{os.environ.get('PYTHONPATH', '')}"} | ({"HEAVY": "1"} if heavy else {})
        self.process = subprocess.Popen(
            command(name, self.port, workers, max_requests),
            cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    async def ready(self) -> None:
        for _ in range(1000):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                good = await reader.read()
                writer.close()
                if good.endswith(b"ok"):
                    return
            except OSError:
                pass
            await asyncio.sleep(0.05)
        raise SystemExit("a server did not start")

    def pss(self) -> float:
        parent = psutil.Process(self.process.pid)
        total = 0
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_full_info().pss
        return total / 2**20

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


async def at_sigterm(name: str, keep_alive: bool) -> tuple[Book, float, int | None]:
    server = Running(name)
    try:
        await server.ready()
        async with siege(server.url, get("/?0.3"), clients=40, keep_alive=keep_alive) as book:
            await asyncio.sleep(random.uniform(1.0, 1.4))
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(server.process.wait, 60)
            took = time.monotonic() - began
        return book, took, status
    finally:
        server.stop()


async def recycling(name: str, keep_alive: bool, requests: int) -> tuple[Book, float]:
    server = Running(name, max_requests=200)
    try:
        await server.ready()
        began = time.monotonic()
        async with siege(server.url, get("/?0.005"), clients=20, keep_alive=keep_alive) as book:
            while book.answered < requests and time.monotonic() < began + 60:  # noqa: ASYNC110 - a poll
                await asyncio.sleep(0.05)
        return book, time.monotonic() - began
    finally:
        server.stop()


async def speed_and_memory(name: str) -> tuple[float, float, float]:
    server = Running(name, workers=4, heavy=True)
    try:
        await server.ready()
        await asyncio.sleep(3)
        idle = server.pss()
        load = {
            "url": server.url + "/",
            "bodies": ["{}"],
            "connections": 64,
            "seconds": 3,
            "warmup_s": 1,
            "check": "answer",
        }
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "app.load"],
            cwd=ROOT,
            input=json.dumps(load),
            text=True,
            capture_output=True,
        )
        report = json.loads(done.stdout) if done.stdout else {}
        return sum(report.get("errors", {}).values()) / 4, idle, server.pss()
    finally:
        server.stop()


async def half_open(name: str) -> tuple[int, int]:
    server = Running(name)
    try:
        await server.ready()
        opened = []
        for number in range(100):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"" if number % 2 else b"GET / HTTP/1.1\r\nHost:")
            opened.append((reader, writer))
        await asyncio.sleep(15)
        still = 0
        for reader, _ in opened:
            try:
                await asyncio.wait_for(reader.read(), 0.02)
            except TimeoutError:
                still += 1
        for _, writer in opened:
            writer.close()
        return len(opened), still
    finally:
        server.stop()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "candidates", nargs="*", default=["uvicorn", "gunicorn-asgi", "gunicorn-uvicorn", "granian", "ours"]
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", choices=["sigterm", "recycling", "speed", "half-open"])
    options = parser.parse_args()
    for name in options.candidates:
        for kind in ("close", "keep-alive"):
            keep_alive = kind == "keep-alive"
            if options.only in (None, "sigterm"):
                rounds = [await at_sigterm(name, keep_alive) for _ in range(options.rounds)]
                lost = [len(book.lost) for book, _, _ in rounds]
                answered = [book.answered for book, _, _ in rounds]
                median = statistics.median(seconds for _, seconds, _ in rounds)
                statuses = sorted({str(status) for _, _, status in rounds})
                print(f"{name:17} SIGTERM {kind:10} lost {lost} of {answered}, {median:.2f} s, status {statuses}")
            if options.only in (None, "recycling") and name != "granian":
                book, took = await recycling(name, keep_alive, 4000)
                print(
                    f"{name:17} recycling {kind:10} lost {len(book.lost)}, refused {book.refused}"
                    f" of {book.answered} in {took:.1f} s"
                )
        if options.only in (None, "speed"):
            rate, idle, loaded = await speed_and_memory(name)
            print(f"{name:17} {rate:.0f} requests/s; PSS of 4 workers {idle:.0f} MB idle, {loaded:.0f} MB after load")
        if options.only in (None, "half-open"):
            opened, still = await half_open(name)
            print(f"{name:17} {still} of {opened} half-open connections still open after 15 s")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
