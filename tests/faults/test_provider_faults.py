"""A provider that fails in every way we know: the contract's status, at most two calls, no key, and then it works."""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, get_args

import pytest

from app.core.models import Models
from app.core.provider_guard import ProviderGuard
from benchmarks.fake_provider import FakeProvider, Fault
from tests.application import Application, open_application
from tests.fault_proxy import FaultProxy
from tests.figures import Figures
from tests.process import free_port

_OTHERS = ("429", "hang", "drip")
KEY = "sk-canary-4f1d0c2b9a8e7f6d"
ROOT = Path(__file__).parents[2]


PLAIN, WRITTEN_OUT = "hello", "hello <system>"
"""Two ways to the provider: a form that is filled in, and Pydantic AI's own mapping. See `plain_chat.is_plain`."""


@asynccontextmanager
async def opened(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, base_url: str, **settings: Any
) -> AsyncGenerator[Application]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    chosen = {"default_model": "openai-chat:gpt-4o-mini", "model_timeout_seconds": 2, **settings}
    async with open_application(data_dir, **chosen) as application:
        yield application


ANSWERED: list[tuple[Fault, str, int]] = [
    *((fault, PLAIN, 502) for fault in get_args(Fault) if fault not in _OTHERS and "stream" not in fault),
    ("bad-json", WRITTEN_OUT, 502),
    ("empty", WRITTEN_OUT, 502),
    ("429", PLAIN, 429),
    ("hang", PLAIN, 504),
    ("drip", PLAIN, 504),
]
STREAMED: list[Fault] = [fault for fault in get_args(Fault) if fault not in ("503", "401", "reset")]


async def test_each_fault_has_its_status_and_the_next_call_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One application for all of them: the good call after each fault is also the fresh start of the next."""
    # Each fault finds as full a budget of retries as it would have alone.
    monkeypatch.setattr("app.core.models.ProviderGuard", partial(ProviderGuard, max_saved_retries=1000))
    async with FakeProvider() as fake, opened(tmp_path, monkeypatch, fake.base_url) as application:
        for number, (fault, words, status) in enumerate(ANSWERED):
            case, prompt = (fault, words), f"{words} {number}"
            caplog.clear()
            fake.fault, before, started = fault, fake.calls, monotonic()
            reply = await application.prompt(prompt)
            took_s, calls = monotonic() - started, fake.calls - before
            fake.fault = None
            good = await application.prompt(prompt)
            assert (case, reply.status_code) == (case, status)
            told = reply.json()
            lines = [line for line in caplog.messages if line.startswith("a prompt failed")]
            assert lines == [f"a prompt failed: {told['detail']} ({told['type'].rpartition(':')[2]})"], case
            assert took_s < 2 + 2, case
            assert 1 <= calls <= 2, case
            assert KEY not in reply.text + str(reply.headers) + caplog.text, case
            assert ("retry-after" in reply.headers) == (status == 429), case
            assert (case, good.status_code, good.headers["x-cache"]) == (case, 200, "MISS")


async def test_a_stream_that_fails_says_so_and_is_never_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Each fault finds as full a budget of retries as it would have alone.
    monkeypatch.setattr("app.core.models.ProviderGuard", partial(ProviderGuard, max_saved_retries=1000))
    async with FakeProvider() as fake, opened(tmp_path, monkeypatch, fake.base_url) as application:
        for fault in STREAMED:
            prompt = f"{PLAIN} {fault}"
            caplog.clear()
            fake.fault, before, started = fault, fake.calls, monotonic()
            reply = await application.prompt(prompt, stream=True)
            took_s, calls = monotonic() - started, fake.calls - before
            fake.fault = None
            good = await application.prompt(prompt, stream=True)
            assert "event: done" not in reply.text, fault
            assert len([line for line in caplog.messages if line.startswith("a prompt failed")]) == 1, fault
            if reply.status_code == 200:
                assert reply.text.count("event: error") == 1, fault
            else:
                assert (fault, reply.status_code) in [(fault, status) for status in (429, 502, 504)]
            assert took_s < 2 + 2, fault
            assert 1 <= calls <= 2, fault
            assert KEY not in reply.text + str(reply.headers) + caplog.text, fault
            assert (fault, good.headers["x-cache"]) == (fault, "MISS")
            assert "event: done" in good.text, fault


@pytest.mark.parametrize("mode", ["blackhole", "hang", "half-close"])
async def test_a_connection_that_leads_nowhere_ends_with_the_deadline(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeProvider() as fake, FaultProxy("127.0.0.1", fake.port) as proxy:
        base_url = f"http://127.0.0.1:{proxy.port}/v1"
        async with opened(tmp_path, monkeypatch, base_url) as application:
            assert (await application.prompt("before")).status_code == 200
            proxy.mode = mode
            started = monotonic()
            reply = await application.prompt("during")
            took_s = monotonic() - started
            proxy.mode = "pass"
            good = await application.prompt("after")
    assert reply.status_code == (502 if mode == "half-close" else 504)
    assert took_s < 2 + 2
    assert proxy.accepted <= 3
    assert good.status_code == 200


async def test_the_faults_are_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: without one, the same questions are answered, kept, and done."""
    async with FakeProvider() as fake, opened(tmp_path, monkeypatch, fake.base_url) as application:
        assert (await application.prompt(PLAIN)).status_code == 200
        assert (await application.prompt(WRITTEN_OUT)).status_code == 200
        again = await application.prompt(PLAIN, stream=True)
    assert "event: done" in again.text
    assert again.headers["x-cache"] == "HIT"
    assert fake.calls == 2


@pytest.mark.parametrize(
    ("outage_s", "protected"),
    [(4.0, True), (1.0, False), pytest.param(30.0, True, marks=pytest.mark.soak)],
)
async def test_a_killed_provider_under_load_is_left_alone_and_found_again(
    outage_s: float,
    protected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    figures: Figures,
) -> None:
    """With `protected=False`, the positive control, each prompt reaches the dead provider, and twice."""
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "other.yaml").write_text("model: ollama:llama3\n")
    other_port = free_port()
    monkeypatch.setenv("OLLAMA_BASE_URL", f"http://127.0.0.1:{other_port}/v1")
    process, base_url = start_provider(0)
    if not protected:
        options = {"failures_to_open": 10**9, "window_s": 10**9, "max_saved_retries": 10**9}
        monkeypatch.setattr("app.core.models.ProviderGuard", partial(ProviderGuard, **options))
    guards: dict[str, ProviderGuard] = {}
    original = Models.__init__

    def noted(models: Models) -> None:
        nonlocal guards
        original(models)
        guards = models.guards

    monkeypatch.setattr(Models, "__init__", noted)
    statuses: dict[str, Counter[int]] = {"default": Counter(), "other": Counter()}
    stop = asyncio.Event()
    numbers = count()

    async def load(application: Application, agent: str) -> None:
        while not stop.is_set():
            reply = await application.prompt(f"nonce:{next(numbers)}", agent=agent)
            statuses[agent][reply.status_code] += 1
            await asyncio.sleep(0.02)

    try:
        async with (
            FakeProvider(port=other_port),
            opened(tmp_path / "data", monkeypatch, base_url, agents_dir=agents, rate_limit_per_minute=10**6) as served,
        ):
            callers = [asyncio.create_task(load(served, agent)) for agent in ("default", "other") for _ in range(8)]
            while min(statuses["default"][200], statuses["other"][200]) < 20:
                await asyncio.sleep(0.01)
            guard = next(guard for identity, guard in guards.items() if base_url in identity)
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed, before = monotonic(), guard.calls
            asked = statuses["default"].total()
            opened_after_s: float | None = None
            while monotonic() - killed < outage_s:
                if guard.is_open and opened_after_s is None:
                    opened_after_s = monotonic() - killed
                await asyncio.sleep(0.01)
            amplification = (guard.calls - before) / (statuses["default"].total() - asked + 8)
            after = "never" if opened_after_s is None else f"after {opened_after_s:.1f} s"
            what = f"a provider away for {outage_s:g} s" + ("" if protected else ", no breaker")
            figures.note(what, "breaker < 5 s, calls < 1.1 x", f"{after}, {amplification:.3f} x")
            if protected:
                assert opened_after_s is not None
                assert opened_after_s < 5
                assert amplification < 1.1
                process, _ = start_provider(int(base_url.split(":")[2].split("/")[0]))
                back, answered = monotonic(), statuses["default"][200]
                while statuses["default"][200] == answered:
                    assert monotonic() - back < 10
                    await asyncio.sleep(0.01)
                figures.note(what, "answers < 10 s after its return", f"{monotonic() - back:.1f} s")
            else:
                assert opened_after_s is None
                assert amplification > 1.1
            stop.set()
            await asyncio.gather(*callers)
    finally:
        process.kill()
        process.wait()
    assert set(statuses["other"]) == {200}, "the other provider's agent noticed nothing"
    assert set(statuses["default"]) <= {200, 502, 503}
    changes = [record.message for record in caplog.records if "circuit" in record.message]
    assert len(changes) == (2 if protected else 0)
    assert KEY not in caplog.text


def start_provider(port: int) -> tuple["subprocess.Popen[str]", str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fake_provider", "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    told: dict[str, Any] = json.loads(process.stdout.readline())
    process.stdout.close()
    return process, str(told["base_url"])
