"""`mnemosine bench` as an operator runs it, against a real server in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app import bench
from app.errors import MnemosineError
from tests.process import ROOT, ServerProcess, free_port, serving

HEAVY = ("fastapi", "starlette", "sqlalchemy", "pydantic", "pydantic_ai", "uvicorn", "openai", "aiohttp")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("bench"), RATE_LIMIT_PER_MINUTE="0") as server:
        server.wait_for("/readyz")
        server.sign_in()
        yield server


def run(*arguments: str, token: str = "") -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    return subprocess.run(
        [sys.executable, "-m", "app", "bench", *arguments],
        cwd=ROOT, env=env | ({"MNEMOSINE_TOKEN": token} if token else {}),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def token_of(server: ServerProcess) -> str:
    return server.headers["Authorization"].removeprefix("Bearer ")


def test_it_measures_within_its_bounds_and_compares_with_a_baseline(server: ServerProcess, tmp_path: Path) -> None:
    saved = tmp_path / "report.json"
    options = ("--connections", "4", "--requests", "200", "--seconds", "60")
    done = run(server.url, *options, "--save", str(saved), token=token_of(server))
    assert done.returncode == 0, done.stderr
    report = json.loads(saved.read_text())
    assert report["statuses"] == {"200": 200}  # the bound on requests came first
    assert all(report["figures"][row.key] for row in bench.ROWS), report["figures"]
    assert report["figures"]["hot_p50_ms"] <= report["figures"]["hot_p95_ms"]
    assert token_of(server) not in saved.read_text() + done.stdout + done.stderr

    report["figures"] = {key: 4 * value for key, value in report["figures"].items()} | {"memory_mb": None}
    saved.write_text(json.dumps(report))
    done = run(server.url, "--seconds", "1", "--baseline", str(saved), token=token_of(server))
    assert done.returncode == 0, done.stderr
    lines = {line[:40].strip(): line for line in done.stdout.splitlines()}
    assert "asked for" in done.stdout
    assert lines["response time, new question, P50"].endswith("-75.0 %")
    assert lines["memory after the load"].split()[-4:] == ["MB", "-", "-40.0", "%"]


def test_hot_questions_come_from_the_cache_and_cold_ones_do_not(server: ServerProcess) -> None:
    before = server.get("/api/v1/performance/cache").json()
    plan = bench.Plan(url=server.url, credential=token_of(server), connections=2, seconds=60, requests=100, hot=0.5)
    report = bench.run(plan)
    after = server.get("/api/v1/performance/cache").json()
    assert report["statuses"] == {"200": 5 + 25 + 5 + 65}
    misses, hits = after["misses"] - before["misses"], after["hits"] - before["hits"]
    assert misses + hits + after["coalesced"] - before["coalesced"] == 100
    assert hits == 20 + 32, "of 25 all but the first of each question, and half of 65"
    assert misses == 5 + 5 + 5 + 33


def test_failures_are_counted_by_status(server: ServerProcess) -> None:
    wanted = {"name": "limited", "requests_per_minute": 10}
    made = httpx2.post(f"{server.url}/api/v1/auth/api-keys", json=wanted, headers=server.headers)
    done = run(server.url, "--requests", "100", "--seconds", "20", token=made.json()["key"])
    assert done.returncode == 0, done.stderr
    assert "200: 1" in done.stdout
    assert "status 429: " in done.stdout
    assert "RATE_LIMIT_PER_MINUTE" in done.stdout


def test_where_nothing_is_answered_the_status_is_1(server: ServerProcess) -> None:
    done = run(server.url, "--requests", "20", "--seconds", "1", token="wrong")
    assert done.returncode == 1
    assert "status 401: " in done.stdout
    assert done.stderr.splitlines()[-1] == "mnemosine: nothing was answered"

    done = run(f"http://127.0.0.1:{free_port()}", "--seconds", "1", token="any")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("mnemosine: cannot connect to http://127.0.0.1:")


def test_it_asks_before_it_loads_another_machine() -> None:
    done = run("https://example.invalid", token="any")
    assert done.returncode == 2
    assert "is not this machine" in done.stderr
    assert run("http://127.0.0.1:1").returncode == 2, "no credential"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://h", "http://", "http://h:x", "http://h/path", "http://u@h"])
def test_an_address_is_scheme_host_and_port(url: str) -> None:
    with pytest.raises(MnemosineError, match="example: http"):
        bench.checked_url(url)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"figures": 1}', '{"figures": {"per_second": "x"}}'])
def test_a_baseline_is_a_saved_report(text: str) -> None:
    with pytest.raises(MnemosineError, match="no report"):
        bench.read_baseline(text)


def test_the_hot_share_is_spread_evenly() -> None:
    def hot(share: float) -> list[bool]:
        mixed: Any = bench._mixed(["hot", "hot"], "cold", share)  # pyright: ignore[reportPrivateUsage]
        return [body == "hot" for body in mixed]

    assert [sum(hot(share)) for share in (0, 0.01, 0.5, 0.8, 1)] == [0, 1, 50, 80, 100]
    assert all(sum(hot(0.8)[at : at + 10]) == 8 for at in range(0, 100, 10))


def test_it_imports_nothing_of_the_server() -> None:
    program = f"import sys, app.bench; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
