"""A provider that fails in every way we know: the contract's status, at most two calls, no key, and then it works."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from app.core.direct_run import DirectAgent
from app.core.models import Models, provider_error
from app.core.provider_guard import ProviderGuard
from app.errors import ProviderUnavailable
from benchmarks.fake_provider import FakeProvider, Fault
from tests.application import open_application

KEY = "sk-canary-4f1d0c2b9a8e7f6d"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("429", 429),
        ("500", 502),
        ("503", 502),
        ("401", 502),
        ("bad-json", 502),
        ("empty", 502),
        ("error-in-200", 502),
        ("reset", 502),
        ("cut", 502),
        ("hang", 504),
        ("drip", 504),
    ],
)
async def test_each_fault_has_its_status_and_the_next_call_succeeds(
    fault: Fault,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with FakeProvider() as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        async with open_application(
            tmp_path, default_model="openai-chat:gpt-4o-mini", model_timeout_seconds=3
        ) as application:
            started = monotonic()
            reply = await application.prompt(f"fault:{fault}")
            took_s = monotonic() - started
            calls = fake.calls
            good = await application.prompt("and now?")
    assert reply.status_code == status
    assert took_s < 3 + 2
    assert calls <= 2
    assert KEY not in reply.text + caplog.text
    assert good.status_code == 200
    assert ("retry-after" in reply.headers) == (status == 429)


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
