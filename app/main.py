"""`create_app(settings)`, and `app` for `uvicorn app.main:app`."""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import Any

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from app import __version__
from app.api import dashboard, health
from app.api.document import complete_document
from app.api.front_door import FrontDoor
from app.api.hosts import AnsweredHosts, AnsweredOrigins
from app.api.known_questions import KnownQuestions
from app.api.openai import chat as openai_chat
from app.api.openai import models as openai_models
from app.api.openai import responses as openai_responses
from app.api.openai.conversation import CONVERSATION_HEADER
from app.api.problems import add_problem_handlers
from app.api.straight_routes import StraightRoutes
from app.api.v1 import (
    agent,
    agents,
    api_keys,
    auth,
    budgets,
    conversations,
    health_detailed,
    history,
    performance,
    prometheus,
    requests,
    response_cache,
    users,
)
from app.config import Settings, export_foreign_variables, load_settings
from app.errors import BadConfiguration
from app.installation import prepare
from app.logs import configure_logging
from app.runtime import open_runtime

_EXPOSED = [
    *("X-Request-ID", "Server-Timing", "X-Cache", "Cache-Status", "Age", "Idempotent-Replayed"),
    *("Retry-After", "retry-after-ms", "x-should-retry"),
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
]
"""The headers of ours that a page from an allowed origin may read."""
_LAST_CALL_S = 20.0
"""Under a server that is not ours, streams are told this long after the signal."""


def create_app(settings: Settings) -> FrontDoor:
    """The whole application on `settings`; nothing is opened before its lifespan begins."""

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncGenerator[None]:
        async with open_runtime(settings, door.metrics, draining=door.draining, last_call=door.last_call) as runtime:
            api.state.runtime = runtime
            yield

    public = settings.docs_open
    api = FastAPI(
        title="Mnemosine",
        version=__version__,
        summary="AI agents over HTTP: pooled, cached, recorded, and measured truthfully.",
        lifespan=lifespan,
        openapi_url="/openapi.json" if public else None,
        docs_url="/docs" if public else None,
        redoc_url=None,
        # The front door opens the span of a request, so that it covers everything and costs nothing where it is off.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    routers = (
        agent.router,  # first: routes are tried in order, and most requests are prompts
        health.router,
        dashboard.router,
        auth.router,
        api_keys.router,
        users.router,
        budgets.router,
        agents.router,
        conversations.router,
        performance.router,
        health_detailed.router,
        history.router,
        prometheus.router,
        requests.router,
        response_cache.router,
        openai_models.router,
        openai_chat.router,
        openai_responses.router,
    )
    for router in routers:
        api.include_router(router)
    routes = [*api.routes, *(route for router in routers for route in router.routes)]
    complete_document(api, routes)
    add_problem_handlers(api, routes)
    # The first to be added is the innermost.
    api.add_middleware(StraightRoutes, routes=routes, handlers=api.exception_handlers)
    if settings.enable_response_compression:
        api.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)
    if settings.allowed_origins:
        api.add_middleware(
            AnsweredOrigins,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["*"],
            allow_headers=[
                "Authorization",
                "Cache-Control",
                "Content-Type",
                "Idempotency-Key",
                "X-Request-ID",
                CONVERSATION_HEADER,
            ],
            expose_headers=_EXPOSED,
        )
    if settings.answered_hosts:
        api.add_middleware(AnsweredHosts, hosts=settings.answered_hosts)
    door = FrontDoor(
        api,
        max_body_bytes=settings.max_request_bytes,
        max_in_flight=settings.max_requests_in_flight,
        known=KnownQuestions(compress=settings.enable_response_compression),
    )
    return door


def _app_from_environment() -> FrontDoor:
    """What `uvicorn app.main:app` serves: settings from the environment, the installation made ready at start."""
    try:
        settings = load_settings()
        export_foreign_variables()
    except BadConfiguration as error:
        print(error.detail, file=sys.stderr)
        raise SystemExit(2) from None
    configure_logging(settings.log_level, settings.log_format)
    door = create_app(settings)
    serve = door.api.router.lifespan_context

    @asynccontextmanager
    async def prepared(api: FastAPI) -> AsyncGenerator[Any]:
        first = await prepare(settings)
        if first is not None:
            print(first.notice(), file=sys.stderr)
        with _told_by_signals(door):
            async with serve(api) as state:
                yield state

    door.api.router.lifespan_context = prepared
    return door


@contextmanager
def _told_by_signals(door: FrontDoor) -> Generator[None]:
    """Tell `door` of SIGTERM and SIGINT on their way to a server that knows nothing of `draining`."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    loop = asyncio.get_running_loop()

    def tell(signum: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(door.draining.set)
        loop.call_soon_threadsafe(loop.call_later, _LAST_CALL_S, door.last_call.set)
        handler = before[signal.Signals(signum)]
        if callable(handler):
            handler(signum, frame)

    taken: list[signal.Signals] = []
    with suppress(ValueError):  # not the main thread: signals are somebody else's
        for signum, handler in before.items():
            if callable(handler):
                signal.signal(signum, tell)
                taken.append(signum)
    try:
        yield
    finally:
        for signum in taken:
            signal.signal(signum, before[signum])


def __getattr__(name: str) -> FrontDoor:
    # `app` is made when a server asks for it, so that importing this module reads no environment.
    if name == "app":
        globals()["app"] = door = _app_from_environment()
        return door
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
