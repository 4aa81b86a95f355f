"""What stands between a prompt and an unreliable provider: a circuit breaker and a budget of retries."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from time import monotonic, perf_counter
from typing import Any, TypeVar

from pydantic_ai import ModelMessage, ModelResponse, ModelSettings, RunContext
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelServerError,
    ModelTimeoutError,
    ModelUnavailableError,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel

from app.core.run import Attempt
from app.core.text_stream import StreamsTexts, TextStream
from app.errors import ProviderUnavailable

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_MAX_RETRY_AFTER_S = 10.0
_NEEDED_FOR_RETRY_S = 1.0
"""What must be left until the deadline after the wait; with less, the second call could hardly answer."""
_BACKOFF_S = 0.25


deadline_at: ContextVar[float | None] = ContextVar("deadline_at", default=None)
"""On the monotonic clock: when the whole run has to be over. A retry that could not be is not begun."""


attempts: ContextVar[list[Attempt] | None] = ContextVar("attempts", default=None)
"""Where the run that is under way wants its requests to models noted."""


class ProviderGuard:
    """One provider's breaker and retry budget; shared by all its models.

    The breaker opens after `failures_to_open` failures in a row, or after two in a row that lie `window_s` apart; a
    dead provider under load is left alone within seconds. After `open_s` one call probes it: success closes the
    breaker, failure keeps it open for another `open_s`. Only changes are logged.

    The budget: every call earns a tenth of a retry, up to `max_saved_retries`, so retries are at most 10 % of the
    calls beyond the first few. A call is retried once at most, so a prompt is at most two calls.
    """

    def __init__(
        self,
        name: str,
        *,
        failures_to_open: int = 5,
        window_s: float = 4.0,
        open_s: float = 3.0,
        max_saved_retries: float = 3.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.name = name
        self.calls = 0
        self.retries = 0
        self._failures_to_open = failures_to_open
        self._window_s = window_s
        self._open_s = open_s
        self._max_saved = max_saved_retries
        self._clock = clock
        self._saved = max_saved_retries
        self._failures = 0
        self._first_failure = 0.0
        self._open_until: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are refused, but for probes."""
        return self._open_until is not None

    async def call(self, send: Callable[[], Awaitable[_T]], *, model: str = "") -> _T:
        """What `send()` gives; called a second time where the failure may pass and the budget allows it.

        Raises what `send` raised last, or `ProviderUnavailable` while the breaker is open.
        """
        try:
            with self._counted(model):
                return await send()
        except ModelAPIError as error:
            wait_s = self._wait_before_retry(error)
            if wait_s is None:
                raise
        await asyncio.sleep(wait_s)
        with self._counted(model):
            return await send()

    @asynccontextmanager
    async def opened(self, open_: Callable[[], AbstractAsyncContextManager[_T]], *, model: str) -> AsyncGenerator[_T]:
        """The stream that `open_()` opens. Opening it is tried again like a call; what was streamed never is."""
        stream = open_()
        try:
            with self._counted(model):
                entered = await stream.__aenter__()
        except ModelAPIError as error:
            wait_s = self._wait_before_retry(error)
            if wait_s is None:
                raise
            await asyncio.sleep(wait_s)
            stream = open_()
            with self._counted(model):
                entered = await stream.__aenter__()
        try:
            yield entered
        except BaseException as error:
            if isinstance(error, Exception) and _is_outage(error):
                self._failed()
            if not await stream.__aexit__(type(error), error, error.__traceback__):
                raise
        else:
            await stream.__aexit__(None, None, None)

    @contextmanager
    def _counted(self, model: str) -> Generator[None]:
        noted = attempts.get()
        started = perf_counter()
        outcome = "cancelled"
        try:
            probe = self._admit()
        except ProviderUnavailable:
            if noted is not None:
                noted.append(Attempt(model, 0.0, "circuit open"))
            raise
        self.calls += 1
        self._saved = min(self._max_saved, self._saved + 0.1)
        try:
            yield
        except Exception as error:
            outcome = _kind_of(error)
            if _is_outage(error):
                self._failed()
            elif isinstance(error, ModelAPIError):
                self._succeeded()  # It answers, if only with a refusal.
            raise
        else:
            outcome = "ok"
            self._succeeded()
        finally:
            if noted is not None:
                noted.append(Attempt(model, perf_counter() - started, outcome))
            # A probe that was cancelled says nothing; the next call probes.
            if probe:
                self._probing = False

    def _admit(self) -> bool:
        """Whether this call is a probe. Raises `ProviderUnavailable` where the breaker is open."""
        if self._open_until is None:
            return False
        wait_s = self._open_until - self._clock()
        if wait_s > 0 or self._probing:
            raise ProviderUnavailable(
                f"the model provider {self.name} has been failing and is left alone for a moment",
                retry_after_s=max(1.0, wait_s),
            )
        self._probing = True
        return True

    def _succeeded(self) -> None:
        self._failures = 0
        if self._open_until is not None:
            self._open_until = None
            _log.warning("model provider %s answers again: circuit closed", self.name)

    def _failed(self) -> None:
        now = self._clock()
        if self._failures == 0:
            self._first_failure = now
        self._failures += 1
        if self._open_until is not None:
            self._open_until = now + self._open_s
        elif self._failures >= self._failures_to_open or (
            self._failures > 1 and now - self._first_failure >= self._window_s
        ):
            self._open_until = now + self._open_s
            _log.warning("model provider %s failed %d times in a row: circuit opened", self.name, self._failures)

    def _wait_before_retry(self, error: ModelAPIError) -> float | None:
        """Seconds until the one retry of a call that failed so, or `None` where there is none."""
        if not _may_pass(error) or self.is_open or self._saved < 1.0:
            return None
        asked_s = error.retry_after if isinstance(error, ModelHTTPError) else None
        if asked_s is not None and asked_s > _MAX_RETRY_AFTER_S:
            return None
        wait_s = _BACKOFF_S if asked_s is None else max(asked_s, 0.0)
        deadline = deadline_at.get()
        if deadline is not None and monotonic() + wait_s + _NEEDED_FOR_RETRY_S > deadline:
            return None
        self._saved -= 1.0
        self.retries += 1
        return wait_s


class GuardedModel(WrapperModel):
    """A model behind its provider's guard; everything else is the model's own."""

    def __init__(self, wrapped: Model[Any], guard: ProviderGuard, name: str) -> None:
        """Guard `wrapped`, which the operator calls `name`."""
        super().__init__(wrapped)
        self.guard = guard
        self.name = name

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """The wrapped model's answer, asked for twice at most."""
        return await self.guard.call(
            lambda: self.wrapped.request(messages, model_settings, model_request_parameters), model=self.name
        )

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """The wrapped model's stream; never asked for again once it has begun."""
        async with self.guard.opened(
            lambda: self.wrapped.request_stream(messages, model_settings, model_request_parameters, run_context),
            model=self.name,
        ) as stream:
            yield stream


class GuardedTextModel(GuardedModel, StreamsTexts):
    """A guarded model whose streams can be read as text."""

    def __init__(self, wrapped: Model[Any], guard: ProviderGuard, name: str) -> None:
        assert isinstance(wrapped, StreamsTexts)
        super().__init__(wrapped, guard, name)
        self._texts: StreamsTexts = wrapped

    @property
    def streams_texts(self) -> bool:
        """As the wrapped model says."""
        return self._texts.streams_texts

    @asynccontextmanager
    async def open_texts(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> AsyncGenerator[TextStream]:
        """The wrapped model's stream as text; never asked for again once it has begun."""
        async with self.guard.opened(
            lambda: self._texts.open_texts(messages, model_settings, model_request_parameters), model=self.name
        ) as stream:
            yield stream


def _is_outage(error: Exception) -> bool:
    """Whether the failure says that the provider is away, rather than that it refuses this call."""
    return isinstance(error, ModelConnectionError | ModelServerError | ModelUnavailableError | TimeoutError)


def _kind_of(error: Exception) -> str:
    """The failure in one word, for whoever asks why a request was slow."""
    match error:
        case ModelRateLimitError():
            return "rate limited"
        case ModelTimeoutError() | TimeoutError():
            return "timeout"
        case ModelConnectionError():
            return "connection"
        case ModelHTTPError():
            return f"status {error.status_code}"
        case _:
            return "bad answer"


def _may_pass(error: ModelAPIError) -> bool:
    """Whether the same call may succeed in a moment. What waited for its time-out has no time left."""
    if isinstance(error, ModelQuotaExceededError | ModelTimeoutError):
        return False
    return isinstance(error, ModelRateLimitError | ModelConnectionError | ModelServerError | ModelUnavailableError)
