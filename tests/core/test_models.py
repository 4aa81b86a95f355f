"""The guard of a provider (breaker, budget of retries) on a clock of its own, and what models share."""

import ssl
from collections.abc import Awaitable, Callable

import httpcore2
import pytest
from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError, ModelRateLimitError

from app.core.models import Models, provider_identity
from app.core.provider_guard import ProviderGuard
from app.errors import ProviderUnavailable


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(clock: Clock) -> ProviderGuard:
    return ProviderGuard("fake", max_saved_retries=0, clock=clock)


async def answers() -> str:
    return "yes"


async def breaks() -> str:
    raise ModelConnectionError("model", "gone")


async def refuses() -> str:
    raise ModelHTTPError(401, "model")


async def times(count: int, guard: ProviderGuard, send: Callable[[], Awaitable[str]]) -> None:
    for _ in range(count):
        with pytest.raises((ModelConnectionError, ModelHTTPError)):
            await guard.call(send)


async def test_five_failures_in_a_row_open_it_and_nothing_is_sent(guard: ProviderGuard) -> None:
    await times(5, guard, breaks)
    with pytest.raises(ProviderUnavailable) as caught:
        await guard.call(answers)
    assert caught.value.status == 503
    assert caught.value.retry_after_s is not None
    assert guard.calls == 5


async def test_two_failures_four_seconds_apart_open_it(guard: ProviderGuard, clock: Clock) -> None:
    await times(1, guard, breaks)
    clock.now += 4
    await times(1, guard, breaks)
    assert guard.is_open


async def test_one_good_answer_between_failures_keeps_it_closed(guard: ProviderGuard) -> None:
    for _ in range(3):
        await times(4, guard, breaks)
        assert await guard.call(answers) == "yes"
    assert not guard.is_open


async def test_a_refusal_is_no_outage(guard: ProviderGuard) -> None:
    await times(20, guard, refuses)
    assert not guard.is_open


async def test_a_good_probe_closes_it_and_a_bad_one_keeps_it_open(guard: ProviderGuard, clock: Clock) -> None:
    await times(5, guard, breaks)
    clock.now += 3.1
    await times(1, guard, breaks)
    with pytest.raises(ProviderUnavailable):
        await guard.call(answers)
    clock.now += 3.1
    assert await guard.call(answers) == "yes"
    assert not guard.is_open


async def test_a_call_is_retried_once_and_asked_for_waits_are_kept() -> None:
    guard = ProviderGuard("fake")
    calls = 0

    async def send() -> str:
        nonlocal calls
        calls += 1
        raise ModelRateLimitHTTP

    ModelRateLimitHTTP = ModelHTTPError.for_category(  # noqa: N806
        ModelRateLimitError, status_code=429, model_name="model", body=None, headers={"retry-after": "60"}
    )
    with pytest.raises(ModelRateLimitError):
        await guard.call(send)
    assert calls == 1  # a minute is too long to wait

    async def broken() -> str:
        nonlocal calls
        calls += 1
        raise ModelConnectionError("model", "gone")

    with pytest.raises(ModelConnectionError):
        await guard.call(broken)
    assert calls == 3


async def test_retries_stay_within_a_tenth_of_the_calls() -> None:
    guard = ProviderGuard("fake", failures_to_open=10_000, window_s=10_000, max_saved_retries=1)
    for _ in range(100):
        with pytest.raises(ModelConnectionError):
            await guard.call(breaks)
    assert guard.retries <= 1 + guard.calls / 10


async def test_models_of_one_account_share_their_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-one")
    async with Models() as models:
        first, second = models.get("openai-chat:gpt-4o"), models.get("openai-chat:gpt-4o-mini")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-two")
        third = models.get("openai-chat:gpt-4.1")
        assert provider_identity(first) == provider_identity(second) != provider_identity(third)
        assert "canary" not in provider_identity(first)
        assert len(models.guards) == 2


@pytest.mark.parametrize(("proxy", "made"), [("", 1), ("http://127.0.0.1:9", 3)])
async def test_one_tls_context_is_for_both_ways_to_a_provider(
    monkeypatch: pytest.MonkeyPatch, proxy: str, made: int
) -> None:
    contexts: list[ssl.SSLContext] = []

    def counted(**options: bool) -> ssl.SSLContext:
        contexts.append(_make(**options))
        return contexts[-1]

    _make = httpcore2.default_ssl_context
    monkeypatch.setattr(httpcore2, "default_ssl_context", counted)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    async with Models() as models:
        models.get("openai-chat:gpt-4o")
        models.get("openai-chat:gpt-4o-mini")
    assert len(contexts) == made, "behind a proxy httpx2 makes its own two"
