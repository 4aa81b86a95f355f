"""A provider that fails in every way we know: the contract's status, at most two calls, no key, and then it works."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, get_args

import pytest

from app.core.direct_run import DirectAgent
from app.core.models import Models, provider_error
from app.core.provider_guard import ProviderGuard
from app.errors import ProviderUnavailable
from benchmarks.fake_provider import FakeProvider, Fault
from tests.application import Application, open_application
from tests.fault_proxy import FaultProxy

_OTHERS = ("429", "hang", "drip")
KEY = "sk-canary-4f1d0c2b9a8e7f6d"
ROOT = Path(__file__).parents[2]


PLAIN, WRITTEN_OUT = "hello", "hello <system>"
"""Two ways to the provider: a form that is filled in, and Pydantic AI's own mapping. See `plain_chat.is_plain`."""


@asynccontextmanager
async def opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_url: str, *, timeout_s: int = 2
) -> AsyncGenerator[Application]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    async with open_application(
        tmp_path, default_model="openai-chat:gpt-4o-mini", model_timeout_seconds=timeout_s
    ) as application:
        yield application


@pytest.mark.parametrize(
    ("fault", "prompt", "status"),
    [
        *((fault, PLAIN, 502) for fault in get_args(Fault) if fault not in _OTHERS and "stream" not in fault),
        *((fault, WRITTEN_OUT, 502) for fault in ("bad-json", "empty")),
        ("429", PLAIN, 429),
        ("hang", PLAIN, 504),
        ("drip", PLAIN, 504),
    ],
)
async def test_each_fault_has_its_status_and_the_next_call_succeeds(
    fault: Fault,
    prompt: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with FakeProvider(fault=fault) as fake, opened(tmp_path, monkeypatch, fake.base_url) as application:
        started = monotonic()
        reply = await application.prompt(prompt)
        took_s = monotonic() - started
        calls = fake.calls
        fake.fault = None
        good = await application.prompt(prompt)
    assert reply.status_code == status
    assert took_s < 2 + 2
    assert 1 <= calls <= 2
    assert KEY not in reply.text + str(reply.headers) + caplog.text
    assert ("retry-after" in reply.headers) == (status == 429)
    assert (good.status_code, good.headers["x-cache"]) == (200, "MISS")


@pytest.mark.parametrize("fault", [fault for fault in get_args(Fault) if fault not in ("503", "401", "reset")])
async def test_a_stream_that_fails_says_so_and_is_never_complete(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeProvider(fault=fault) as fake, opened(tmp_path, monkeypatch, fake.base_url) as application:
        started = monotonic()
        reply = await application.prompt(PLAIN, stream=True)
        took_s = monotonic() - started
        calls = fake.calls
        fake.fault = None
        good = await application.prompt(PLAIN, stream=True)
    assert "event: done" not in reply.text
    if reply.status_code == 200:
        assert reply.text.count("event: error") == 1
    else:
        assert reply.status_code in (429, 502, 504)
    assert took_s < 2 + 2
    assert 1 <= calls <= 2
    assert KEY not in reply.text + str(reply.headers) + caplog.text
    assert good.headers["x-cache"] == "MISS"
    assert "event: done" in good.text


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


@pytest.mark.parametrize("outage_s", [5.0, pytest.param(30.0, marks=pytest.mark.soak)])
async def test_a_killed_provider_is_left_alone_and_found_again(
    outage_s: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    process, base_url = start_provider(0)
    async with FakeProvider() as other, Models() as models:
        monkeypatch.setenv("OPENAI_BASE_URL", other.base_url)
        healthy = direct(models, "openai-chat:gpt-4o")
        monkeypatch.setenv("OPENAI_BASE_URL", base_url)
        doomed = direct(models, "openai-chat:gpt-4o-mini")
        guard = next(guard for identity, guard in models.guards.items() if base_url in identity)
        try:
            assert await ask(doomed) == "answered"
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed = monotonic()
            opened_after_s: float | None = None
            asked, before = 0, guard.calls
            while monotonic() - killed < outage_s:
                said = await ask(doomed)
                asked += 1
                assert said != "answered"
                if guard.is_open and opened_after_s is None:
                    opened_after_s = monotonic() - killed
                assert await ask(healthy) == "answered"
                await asyncio.sleep(0.02)
            assert opened_after_s is not None
            assert opened_after_s < 5
            assert (guard.calls - before) / asked < 1.1
            process, _ = start_provider(int(base_url.split(":")[2].split("/")[0]))
            back = monotonic()
            while await ask(doomed) != "answered":
                assert monotonic() - back < 10
                await asyncio.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    changes = [record for record in caplog.records if "circuit" in record.message]
    assert len(changes) == 2
    assert KEY not in caplog.text


async def test_without_a_breaker_every_prompt_reaches_the_dead_provider() -> None:
    """The positive control: what the test above measures is what the guard prevents."""
    guard = ProviderGuard("dead", failures_to_open=10**9, window_s=10**9, max_saved_retries=10**9)
    asked = 0

    async def refuse() -> None:
        from pydantic_ai.exceptions import ModelConnectionError

        raise ModelConnectionError("model", "refused")

    for _ in range(3):
        asked += 1
        with pytest.raises(Exception, match="refused"):
            await guard.call(refuse)
    assert guard.calls / asked > 1.1


def direct(models: Models, name: str) -> DirectAgent:
    from pydantic_ai import Agent

    model = models.get(name)
    return DirectAgent(Agent(model), model)


async def ask(agent: DirectAgent) -> str:
    """`answered`, or the code of the failure."""
    try:
        await agent.run("hello", run_id="r", model_settings={"max_retries": 0})
    except ProviderUnavailable as error:
        return error.code
    except Exception as error:
        known = provider_error(error, provider="openai")
        if known is None:
            raise
        return known.code
    return "answered"


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
