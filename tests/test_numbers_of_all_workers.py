"""The numbers of a server with four workers, whichever of them answers, and when one of them is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.counting_worker import latencies
from tests.figures import Figures
from tests.process import ROOT, ServerProcess, serving

DEADLINE_S = 20.0
METRICS = "/api/v1/performance/metrics"


class CountingWorker:
    """Another process that counts; see `tests/counting_worker.py`."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.counting_worker", str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def tell(self, *words: object) -> str:
        assert self.process.stdin
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.line()

    def read(self) -> dict[str, float]:
        return json.loads(self.tell("read"))

    def end(self, signum: int = signal.SIGKILL) -> None:
        self.process.send_signal(signum)
        self.process.wait(timeout=10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


@contextmanager
def counting(folder: Path, workers: int) -> Generator[list[CountingWorker]]:
    started = [CountingWorker(folder) for _ in range(workers)]
    try:
        assert [worker.line() for worker in started] == ["ready\n"] * workers
        yield started
    finally:
        for worker in started:
            if worker.process.poll() is None:
                worker.end()


def eventually(check: Callable[[], Any], expected: Any) -> None:
    """Ask until it is so; others' numbers are a moment old."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := check()) != expected:
        assert time.monotonic() < deadline, f"{found} never became {expected}"
        time.sleep(0.05)


def percentile(values: list[float], q: float) -> float:
    return sorted(values)[int(q * (len(values) - 1))]


@pytest.mark.parametrize("each", [500, pytest.param(2500, marks=pytest.mark.soak)])
def test_counts_are_exact_and_percentiles_within_one_per_cent(tmp_path: Path, each: int) -> None:
    with counting(tmp_path, 4) as workers:
        for seed, worker in enumerate(workers):
            worker.tell("record", seed, each)
        true = [value for seed in range(4) for value in latencies(seed, each)]
        for worker in workers:
            eventually(lambda worker=worker: worker.read()["count"], 4 * each)
            told = worker.read()
            assert told["workers"] == 4
            for q in ("0.5", "0.95", "0.99"):
                assert told[q] == pytest.approx(percentile(true, float(q)), rel=0.01)


def test_a_killed_worker_is_counted_on_and_another_takes_its_place(tmp_path: Path) -> None:
    with counting(tmp_path, 3) as workers:
        for seed, worker in enumerate(workers):
            worker.tell("record", seed, 100)
        eventually(lambda: workers[0].read()["count"], 300)  # the second has shown what it counted
        workers[1].end(signal.SIGKILL)
        eventually(lambda: workers[0].read()["workers"], 2)
        for worker in (workers[0], workers[2]):
            assert worker.read()["count"] == 300
        workers[1] = CountingWorker(tmp_path)
        assert workers[1].line() == "ready\n"
        workers[1].tell("record", 9, 50)
        for worker in workers:
            eventually(lambda worker=worker: (worker.read()["workers"], worker.read()["count"]), (3, 350))
        assert len(list((tmp_path / "numbers").glob("*.report"))) == 3


@pytest.mark.soak
def test_a_worker_killed_while_it_counts_loses_at_most_its_last_second(tmp_path: Path, figures: Figures) -> None:
    with counting(tmp_path, 4) as workers:
        lost_in_all = told_in_all = 0
        for number in range(10):
            told, end = list[float](), time.monotonic() + 2 + number / 10
            while time.monotonic() < end:
                workers[1].tell("record", number, 10)
                told.append(time.monotonic())
                time.sleep(0.005)
            killed = time.monotonic()
            workers[1].end(signal.SIGKILL)
            eventually(lambda: workers[0].read()["workers"], 3)
            lost = told_in_all + 10 * len(told) - lost_in_all - int(workers[0].read()["count"])
            assert 0 <= lost <= 10 * sum(at > killed - 1 for at in told)
            print(f"round {number}: lost {lost} of {10 * len(told)}")
            told_in_all += 10 * len(told)
            lost_in_all += lost
            workers[1] = CountingWorker(tmp_path)
            assert workers[1].line() == "ready\n"
    lost = f"{lost_in_all} of {told_in_all}"
    figures.note("10 workers killed while they count", "at most the last second lost", lost)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_two_hundred_restarts_leave_no_growing_files(tmp_path: Path, figures: Figures) -> None:
    def held() -> tuple[int, int, int]:
        """Files, bytes of the write-ahead log, which SQLite lets grow to its bound, and of all others."""
        files = list((tmp_path / "numbers").iterdir())
        # Reports are written at two places far apart, with a hole between: blocks, not lengths.
        sizes = {file.name: file.stat().st_blocks * 512 for file in files}
        log = sizes.pop("history.db-wal", 0)
        return len(files), log, sum(sizes.values())

    with counting(tmp_path, 4) as workers:
        held_at = dict[int, tuple[int, int, int]]()
        for number in range(200):
            at = number % 4
            other = workers[(at + 1) % 4]
            workers[at].tell("record", number, 50)
            eventually(lambda other=other: other.read()["count"], 50 * (number + 1))
            workers[at].end(signal.SIGKILL if number % 2 else signal.SIGTERM)
            workers[at] = CountingWorker(tmp_path)
            assert workers[at].line() == "ready\n"
            held_at[number] = held()
        grown = f"{held_at[199][2] - held_at[20][2]:+d} bytes, {held_at[199][0] - held_at[20][0]:+d} files"
        figures.note("200 restarts of workers", "no growing files, counts exact", grown)
        true = [value for seed in range(200) for value in latencies(seed, 50)]
        for worker in workers:
            told = worker.read()
            assert (told["count"], told["workers"]) == (10_000, 4)
            for q in ("0.5", "0.95", "0.99"):
                assert told[q] == pytest.approx(percentile(true, float(q)), rel=0.01)
        assert held_at[199][0] <= held_at[20][0] + 2
        assert held_at[199][1] <= 5_000_000
        assert held_at[199][2] <= held_at[20][2] + 500_000


def prompts(server: ServerProcess) -> int:
    """How many prompts were counted, by the worker that takes a new connection."""
    picture = server.get(METRICS).json()
    return sum(each["count"] for each in picture["requests"]["routes"] if each["route"] == "POST /api/v1/agent/prompt")


def serving_pids(server: ServerProcess) -> set[int]:
    return {worker["pid"] for worker in server.get(METRICS).json()["workers"]}


def test_four_workers_of_a_real_server_are_one(tmp_path: Path) -> None:
    with serving(tmp_path, WORKERS="4", ADMIN_PASSWORD="a password for tests") as server:
        server.sign_in(password="a password for tests")
        server.wait_for("/readyz")
        eventually(lambda: server.get(METRICS).json()["scope"], {"workers": 4, "replicas": 1})
        for round_number in range(12):  # each on a connection of its own, so on any worker
            with httpx2.Client(headers=server.headers, base_url=server.url, timeout=30) as client:
                for number in range(5):
                    asked = {"message": f"prompt {round_number} {number}"}
                    assert client.post("/api/v1/agent/prompt", json=asked).status_code == 200
        for _ in range(12):
            eventually(lambda: prompts(server), 60)

        def pool() -> tuple[int, int]:
            told = server.get("/api/v1/performance/agent-pool").json()
            return told["capacity"], told["hits"] + told["misses"]

        # Whoever answers may have heard of the others half a second ago.
        eventually(pool, (40, 60))
        eventually(lambda: server.get("/api/v1/performance/cache").json()["misses"], 60)

        before = serving_pids(server)
        (victim, *_) = before - {psutil.Process().pid}
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(serving_pids(server) - {victim}), 4)
        for _ in range(8):
            eventually(lambda: prompts(server), 60)
        picture = server.get(METRICS).json()
        assert picture["uptime_seconds"] > max(worker["uptime_seconds"] for worker in picture["workers"]) - 1
        metrics = server.get("/metrics").text
        assert "mnemosine_workers 4" in metrics
        assert server.stop() == 0
    assert list((tmp_path / "data" / "numbers").glob("*.report")) == []
