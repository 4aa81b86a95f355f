"""Reloading agents in a server of two worker processes: all follow, nothing is cut, a broken file changes nothing."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.process import ROOT, ServerProcess, serving

PASSWORD = "a password for tests"


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "a.yaml").write_text("description: first\n")
    return folder


@pytest.fixture
def server(tmp_path: Path, agents: Path) -> Iterator[ServerProcess]:
    environment = {"ADMIN_PASSWORD": PASSWORD, "AGENTS_DIR": str(agents), "DEFAULT_MODEL": "offline"}
    with serving(tmp_path, "--workers", "2", **environment) as started:
        started.wait_for("/readyz")
        started.sign_in(password=PASSWORD)
        yield started
        assert started.stop() == 0


def seen(server: ServerProcess, *, samples: int = 16) -> set[tuple[str, str]]:
    """Description and revision of `a` as fresh connections meet it, so that both workers are asked."""

    def ask(_: int) -> tuple[str, str]:
        reply = httpx2.get(f"{server.url}/api/v1/agents/a", headers=server.headers, timeout=30).json()
        return reply["description"], reply["revision"]

    with ThreadPoolExecutor(8) as threads:
        return set(threads.map(ask, range(samples)))


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def descriptions(server: ServerProcess) -> set[str]:
    return {description for description, _ in seen(server)}


def notices(server: ServerProcess, pattern: str) -> int:
    return len(re.findall(pattern, server.output()))


def test_every_worker_follows_by_each_way_and_a_broken_file_changes_nothing(
    server: ServerProcess, agents: Path, tmp_path: Path
) -> None:
    workers = [child.pid for child in psutil.Process(server.process.pid).children()]
    assert len(workers) == 2
    revisions = {revision for _, revision in seen(server)}
    assert len(revisions) == 1

    # By the route, while a hundred prompts run.
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(_prompt, server, f"nonce:{number}") for number in range(100)]
        (agents / "a.yaml").write_text("description: by the route\n")
        reply = httpx2.post(f"{server.url}/api/v1/agents/reload", headers=server.headers, timeout=30)
        assert reply.json() == {"changed": ["a"]}
        until(lambda: descriptions(server) == {"by the route"})
        for number, prompt in enumerate(asked):
            answered = prompt.result()
            assert answered.status_code == 200
            assert f"nonce:{number}" in answered.json()["response"]
    until(lambda: notices(server, r"read again; changed: a\b") == 2)

    # By the command.
    (agents / "a.yaml").write_text("description: by the command\n")
    told = reload_by_command(tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == "read again by 2 workers: a, default\nchanged: a\n"
    assert descriptions(server) == {"by the command"}, "who was told is served"

    # A broken file: refused by the route and by the command, with file and line; every worker keeps what it has.
    before = seen(server)
    (agents / "a.yaml").write_text("description: broken\ninstrutions: x\n")
    refused = httpx2.post(f"{server.url}/api/v1/agents/reload", headers=server.headers, timeout=30)
    assert refused.status_code == 409
    assert "a.yaml, line 2" in refused.json()["detail"]
    for worker in workers:
        os.kill(worker, signal.SIGHUP)
    until(lambda: notices(server, "the agents stay as they were: .*a.yaml, line 2") == 2)
    told = reload_by_command(tmp_path)
    assert told.returncode == 2
    assert "the agents stay as they were: " in told.stderr
    assert "a.yaml, line 2" in told.stderr
    assert seen(server) == before

    # By the signal, to each worker.
    (agents / "a.yaml").write_text("description: by the signal\n")
    for worker in workers:
        os.kill(worker, signal.SIGHUP)
    until(lambda: descriptions(server) == {"by the signal"})
    assert [child.pid for child in psutil.Process(server.process.pid).children()] == workers, "nobody was restarted"
    assert {revision for _, revision in seen(server)}.isdisjoint(revisions)


def test_a_signal_to_the_supervisor_reaches_the_agents_of_all_workers(server: ServerProcess, agents: Path) -> None:
    (agents / "a.yaml").write_text("description: by the supervisor\n")
    os.kill(server.process.pid, signal.SIGHUP)
    until(lambda: descriptions(server) == {"by the supervisor"})
    assert _prompt(server, "hello").status_code == 200


def _prompt(server: ServerProcess, message: str) -> httpx2.Response:
    body = {"message": message, "agent": "a", "cache": {"mode": "off"}}
    return httpx2.post(f"{server.url}/api/v1/agent/prompt", json=body, headers=server.headers, timeout=60)


def test_the_command_says_what_the_server_has_whatever_its_own_shell_would_serve(tmp_path: Path, agents: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "foreign.yaml").write_text("description: of this shell\n")
    with serving(tmp_path, AGENTS_DIR=str(agents), DEFAULT_MODEL="offline") as server:
        server.wait_for("/readyz")
        told = reload_by_command(tmp_path, AGENTS_DIR=str(tmp_path / "others"), DEFAULT_MODEL="openai-chat:no-key")
        assert told.stdout == "read again by 1 worker: a, default\nchanged: none\n", told.stderr
        assert server.stop() == 0
    told = reload_by_command(tmp_path)
    assert told.returncode == 2
    assert f"no server runs on DATA_DIR={tmp_path / 'data'}" in told.stderr


def reload_by_command(tmp_path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app", "agents", "reload"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path / "data")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
