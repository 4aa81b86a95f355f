"""The end of a server: whoever sent a request whole gets an answer, and the process ends when it was told to."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.fake_provider import FakeProvider
from tests.figures import Figures
from tests.process import ServerProcess, free_port, running, serving
from tests.siege import Book, get, post, siege

PASSWORD = "a password for tests"


def environment(fake: FakeProvider | None = None, **more: str) -> dict[str, str]:
    """Prompts that reach the model every time."""
    chosen = {
        "ADMIN_PASSWORD": PASSWORD,
        "CACHE_ENABLED": "false",
        "RATE_LIMIT_PER_MINUTE": "0",
        "LOG_LEVEL": "warning",
    }
    if fake is not None:
        chosen |= {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": fake.base_url, "DEFAULT_MODEL": "openai-chat:fake"}
    return chosen | more


@contextmanager
def ready_server(tmp_path: Path, *options: str, **more: str) -> Generator[ServerProcess]:
    with serving(tmp_path, *options, **more) as server:
        server.wait_for("/readyz")
        server.sign_in(password=PASSWORD)
        yield server


def prompt(server: ServerProcess, **fields: object) -> bytes:
    body = json.dumps({"message": "say it", **fields}).encode()
    return post("/api/v1/agent/prompt", body, **server.headers)


@asynccontextmanager
async def a_provider(latency_s: float) -> AsyncGenerator[FakeProvider]:
    async with FakeProvider(latency_s=latency_s, record=False) as fake:
        yield fake


def ended(server: ServerProcess) -> asyncio.Task[int]:
    return asyncio.create_task(asyncio.to_thread(server.process.wait, 40))


async def answers(book: Book, count: int) -> None:
    async with asyncio.timeout(30):
        while book.answered < count:
            await asyncio.sleep(0.01)


async def end_under_load(tmp_path: Path, command: Sequence[str], fake: FakeProvider, *, keep_alive: bool) -> Book:
    """SIGTERM to a server with two workers and 30 busy clients."""
    port = int(command[command.index("--port") + 1])
    with running(command, tmp_path, port=port, **environment(fake)) as server:
        await asyncio.to_thread(server.wait_for, "/readyz")
        await asyncio.to_thread(server.sign_in, "admin", PASSWORD)
        async with siege(server.url, prompt(server), clients=30, keep_alive=keep_alive) as book:
            await answers(book, 60)
            server.process.send_signal(signal.SIGTERM)
            status = await ended(server)
        assert status == 0, server.output()
        assert "Traceback" not in server.output()
    assert set(book.statuses) == {200}
    return book


def our_command(*options: str) -> list[str]:
    return [sys.executable, "-m", "app", "serve", "--port", str(free_port()), *options]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("keep_alive", [False, True], ids=["new connections", "kept connections"])
async def test_sigterm_loses_no_request_that_was_sent(tmp_path: Path, workers: str, keep_alive: bool) -> None:
    async with a_provider(0.3) as fake:
        book = await end_under_load(tmp_path, our_command("--workers", workers), fake, keep_alive=keep_alive)
    assert book.lost == []


def last_event(body: bytes) -> bytes:
    """The name of the last event, if the stream ends behind one; a refusal has none."""
    return body.rpartition(b"event: ")[2].split(b"\n")[0] if body.endswith(b"\n\n") else b""


@dataclass(frozen=True, slots=True)
class Books:
    """Of streams, and of plain prompts beside them, over connections that are kept and over new ones."""

    streams: Book
    kept: Book
    fresh: Book

    @property
    def lost(self) -> list[str]:
        return [*self.streams.lost, *self.kept.lost, *self.fresh.lost]

    @property
    def statuses(self) -> Counter[int]:
        return self.streams.statuses + self.kept.statuses + self.fresh.statuses


async def end_under_streams(tmp_path: Path, fake: FakeProvider, *, ending: str) -> Books:
    """SIGTERM to two workers under streams: short ones that finish, or such as outlast the grace time."""
    fake.chunk_gap_s, grace_s, clients = (0.02, 20, 15) if ending == "done" else (2.0, 1, 5)
    command = our_command("--workers", "2", "--graceful-timeout", str(grace_s))
    port = int(command[command.index("--port") + 1])
    with running(command, tmp_path, port=port, **environment(fake)) as server:
        await asyncio.to_thread(server.wait_for, "/readyz")
        await asyncio.to_thread(server.sign_in, "admin", PASSWORD)
        async with (
            siege(
                server.url,
                prompt(server, stream=True),
                clients=20,
                is_whole=lambda body: last_event(body) == ending.encode(),
            ) as streams,
            siege(server.url, prompt(server), clients=clients, keep_alive=True) as kept,
            siege(server.url, prompt(server), clients=clients) as fresh,
        ):
            await answers(kept, 10)
            await answers(fresh, 10)
            if ending == "done":
                await answers(streams, 40)
            await fake.until(lambda: fake.open_streams >= 10)
            server.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):  # the longer grace time; after it workers would be killed
                status = await ended(server)
        assert status == 0, server.output()
        assert "Traceback" not in server.output()
    assert streams.answered >= 10
    books = Books(streams, kept, fresh)
    assert set(books.statuses) == {200}
    return books


@pytest.mark.parametrize("ending", ["done", "error"])
async def test_sigterm_under_streams_ends_each_with_an_event(tmp_path: Path, ending: str) -> None:
    async with a_provider(0.1) as fake:
        books = await end_under_streams(tmp_path, fake, ending=ending)
    assert books.lost == []


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_twenty_rounds_of_sigterm_lose_nothing(tmp_path: Path, figures: Figures) -> None:
    lost, answered = list[str](), 0
    async with a_provider(0.1) as fake:
        for number in range(20):
            books = await end_under_streams(tmp_path, fake, ending=("done", "error")[number % 2])
            lost += books.lost
            answered += books.statuses.total()
    figures.note(
        "20 times SIGTERM under load and streams", "0 lost, status 0", f"{len(lost)} lost, {answered} answered"
    )
    assert lost == []


async def test_the_control_loses_some(tmp_path: Path) -> None:
    port = str(free_port())
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", port, "--workers", "2"]
    async with a_provider(0.3) as fake:
        book = await end_under_load(tmp_path, command, fake, keep_alive=False)
    assert book.lost


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_readiness_ends_at_once_and_running_prompts_finish(tmp_path: Path, workers: str) -> None:
    async with a_provider(1.5) as fake:
        with ready_server(tmp_path, "--workers", workers, **environment(fake)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
            asked = asyncio.create_task(asyncio.to_thread(server.prompt, "still running"))
            await fake.until(lambda: fake.in_flight == 1)
            server.process.send_signal(signal.SIGTERM)
            # The connection was there before the signal; it is the only way in that is left.
            async with asyncio.timeout(40):
                while await asyncio.to_thread(port_is_open, server.url):
                    pass
            writer.write(get("/readyz", Host="127.0.0.1"))
            answer = await asyncio.wait_for(reader.read(), 40)
            reply = await asked
            status = await ended(server)
            writer.close()
    assert b"503" in answer.split(b"\r\n")[0]
    assert b"draining" in answer
    assert b"connection: close" in answer.lower()
    assert reply.status_code == 200
    assert status == 0


def port_is_open(url: str) -> bool:
    import socket

    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_outlasts_the_grace_time_is_answered_with_503(tmp_path: Path, workers: str) -> None:
    async with a_provider(60) as fake:
        with ready_server(tmp_path, "--workers", workers, "--graceful-timeout", "1", **environment(fake)) as server:
            asked = asyncio.create_task(asyncio.to_thread(server.prompt, "for ever"))
            await fake.until(lambda: fake.in_flight == 1)
            server.process.send_signal(signal.SIGTERM)
            reply = await asked
            status = await ended(server)
            output = server.output()
    assert reply.status_code == 503
    assert reply.headers["retry-after"]
    assert reply.headers["content-type"] == "application/problem+json"
    assert status == 0
    assert "Traceback" not in output


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_ends_it_at_once(tmp_path: Path, workers: str, signum: signal.Signals) -> None:
    async with a_provider(60) as fake:
        with ready_server(tmp_path, "--workers", workers, **environment(fake)) as server:
            async with siege(server.url, prompt(server), clients=3) as book:
                await fake.until(lambda: fake.in_flight == 3)
                server.process.send_signal(signum)
                async with asyncio.timeout(10):
                    while await asyncio.to_thread(port_is_open, server.url):
                        pass
                assert server.process.poll() is None, "the control: one signal waits for the running prompts"
                server.process.send_signal(signum)
                async with asyncio.timeout(5):  # a second, and what a busy machine adds
                    status = await ended(server)
            output = server.output()
    assert status == 0
    assert "Traceback" not in output
    assert book.answered + len(book.lost) == 3


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_during_the_start_ends_it_without_a_trace(tmp_path: Path, workers: str) -> None:
    for delay_s in (0.1, 0.4, 0.8, 1.2):
        command = our_command("--workers", workers)
        with running(command, tmp_path, port=0, **environment()) as server:
            time.sleep(delay_s)  # not a wait for anything: the moment is the parameter
            server.process.send_signal(signal.SIGTERM)
            status = server.process.wait(timeout=20)
            output = server.output()
        # Before the interpreter has reached our first line it dies as every program does.
        assert status in (0, -signal.SIGTERM), output
        assert "Traceback" not in output
        assert delay_s < 1 or status == 0, output


async def test_sighup_replaces_the_workers_one_by_one_and_loses_nothing(tmp_path: Path) -> None:
    async with a_provider(0.05) as fake:
        with ready_server(tmp_path, "--workers", "2", **environment(fake)) as server:
            before = worker_pids(server)
            async with siege(server.url, prompt(server), clients=8, keep_alive=True) as book:
                await answers(book, 20)
                server.process.send_signal(signal.SIGHUP)
                async with asyncio.timeout(30):
                    while worker_pids(server) & before or len(worker_pids(server)) != 2:
                        await asyncio.sleep(0.05)
                await answers(book, book.answered + 20)
            status = await asyncio.to_thread(server.stop)
    assert book.lost == []
    assert book.refused == 0
    assert set(book.statuses) == {200}
    assert status == 0


def worker_pids(server: ServerProcess) -> set[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=,stat=", "--ppid", str(server.process.pid)], capture_output=True, text=True, check=False
    )
    return {int(line.split()[0]) for line in listed.stdout.splitlines() if "Z" not in line.split()[1]}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("workers", "requests"), [("1", 1_500), ("2", 1_500), pytest.param("2", 20_000, marks=pytest.mark.soak)]
)
async def test_recycling_loses_no_request(tmp_path: Path, workers: str, requests: int, figures: Figures) -> None:
    options = ("--workers", workers, "--max-requests", "200")
    async with a_provider(0.02) as fake:
        with ready_server(tmp_path, *options, **environment(fake)) as server:
            before = worker_pids(server)
            async with (
                siege(server.url, prompt(server), clients=15, keep_alive=True) as kept,
                siege(server.url, prompt(server), clients=5) as fresh,
                siege(server.url, get("/livez"), clients=1) as health,
                asyncio.timeout(800),
            ):
                while kept.answered + fresh.answered < requests:
                    await asyncio.sleep(0.02)
            async with asyncio.timeout(10):
                while worker_pids(server) & before:
                    await asyncio.sleep(0.02)
            assert await asyncio.to_thread(server.stop) == 0
    books = (kept, fresh, health)
    lost = sum(len(book.lost) for book in books)
    figures.note(f"{requests} prompts to workers of 200", "0 lost", f"{lost} lost")
    for book in books:
        assert book.lost == []
        assert book.refused == 0
        assert set(book.statuses) == {200}
    print(f"{workers} worker(s): {kept}, {fresh}, health {health}")
    with closing(sqlite3.connect(tmp_path / "data" / "mnemosine.db")) as database:
        recorded = dict(database.execute("SELECT status, count(*) FROM runs GROUP BY status"))
    assert recorded == {"done": kept.answered + fresh.answered}, "each is recorded, by whichever worker answered it"


async def test_a_worker_that_grows_too_large_is_replaced(tmp_path: Path) -> None:
    with ready_server(tmp_path, "--max-worker-memory", "20", **environment()) as server:
        before = worker_pids(server)
        async with asyncio.timeout(20):
            while worker_pids(server) & before:
                await asyncio.sleep(0.05)
        assert (await asyncio.to_thread(server.wait_for, "/readyz")).status_code == 200


def test_both_kinds_of_shutdown_leave_no_process(tmp_path: Path) -> None:
    import psutil

    with ready_server(tmp_path, "--workers", "2", **environment()) as server:
        processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        server.process.kill()
        server.process.wait()
        _, alive = psutil.wait_procs(processes, timeout=15)
    assert alive == [], "workers end when their parent is gone"
