"""What the server measured: the whole picture, and its health in detail."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from time import monotonic, perf_counter
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from app import __version__
from app.api.dependencies import AgentRoomDep, CurrentCaller, RuntimeDep
from app.api.json_route import JsonRoute
from app.core.exposition import CONTENT_TYPE, render
from app.core.metrics import WINDOWS_S, Distribution, Snapshot, Window
from app.core.vitals import Vitals, read_vitals
from app.errors import DatabaseUnavailable, NotAuthenticated
from app.runtime import Runtime

router = APIRouter(prefix="/api/v1/performance", tags=["performance"], route_class=JsonRoute)
prometheus = APIRouter(tags=["performance"])
"""`/metrics` alone stands outside of `/api/v1`."""

CHECK_TIMEOUT_S = 0.5
SLOW_LOOP_S = 0.25
"""A loop that is this late (P99 of five minutes) makes every answer late."""
FULL_DISK_PERCENT = 95

Health = Literal["healthy", "degraded", "unhealthy"]
Check = tuple[str, Callable[[Runtime], Awaitable[Health]]]


class Milliseconds(BaseModel):
    """A distribution; percentiles are within 0.5 % of the true ones, `count` and `mean` are exact."""

    count: int = 0
    mean: float = 0
    p50: float = 0
    p95: float = 0
    p99: float = 0
    max: float = 0


class Percentiles(BaseModel):
    """A distribution in short, in milliseconds."""

    p50: float = 0
    p95: float = 0
    p99: float = 0


class ScopeReply(BaseModel):
    """How many were counted to give these numbers."""

    workers: int
    replicas: int


class AmountReply(BaseModel):
    """How much there is, and how much of it is taken."""

    total_bytes: int
    used_bytes: int
    percent: float


class SystemReply(BaseModel):
    """The machine."""

    cpu_percent: float
    memory: AmountReply
    disk: AmountReply


class ProcessReply(BaseModel):
    """The serving process."""

    rss_bytes: int
    open_files: int
    event_loop_lag_ms: Percentiles


class RouteReply(BaseModel):
    """One route, by its template."""

    route: str
    count: int
    errors: int
    response_time_ms: Milliseconds


class RequestsReply(BaseModel):
    """HTTP requests since the start; `errors` are answers of 500 and above, `per_second` is of the last minute."""

    total: int
    errors: int
    in_flight: int
    per_second: float
    response_time_ms: Milliseconds
    overhead_ms: Milliseconds
    """Without the time of the model."""
    by_status: dict[str, int]
    routes: list[RouteReply]


class ModelReply(BaseModel):
    """One model of one provider."""

    provider: str
    model: str
    total: int
    errors: int
    latency_ms: Milliseconds


class ModelCallsReply(BaseModel):
    """Runs of models since the start."""

    total: int
    errors: int
    retries: int
    latency_ms: Milliseconds
    time_to_first_token_ms: Milliseconds
    input_tokens: int
    output_tokens: int
    cost_usd: float
    models: list[ModelReply]


class DatabaseReply(BaseModel):
    """The pool of connections."""

    backend: Literal["sqlite", "postgresql"]
    pool_size: int
    checked_out: int
    overflow: int
    wait_ms: Milliseconds


class WindowReply(BaseModel):
    """The last minutes; `seconds` is how long they really were."""

    seconds: float
    requests: int
    errors: int
    per_second: float
    response_time_ms: Milliseconds
    model_calls: int
    model_errors: int


_EXAMPLE_MS: dict[str, Any] = {"count": 1000, "mean": 412.7, "p50": 380.2, "p95": 812.0, "p99": 1204.5, "max": 1630.1}


class MetricsReply(BaseModel):
    """The whole picture."""

    model_config = {
        "json_schema_extra": {
            "examples": [
                {
                    "scope": {"workers": 1, "replicas": 1},
                    "uptime_seconds": 86400.0,
                    "started_at": "2026-11-24T00:00:00Z",
                    "requests": {"total": 1000, "errors": 0, "in_flight": 3, "response_time_ms": _EXAMPLE_MS},
                }
            ]
        }
    }

    scope: ScopeReply
    uptime_seconds: float
    started_at: datetime
    system: SystemReply
    process: ProcessReply
    requests: RequestsReply
    model_calls: ModelCallsReply
    agent_pool: dict[str, Any]
    cache: dict[str, Any]
    database: DatabaseReply
    windows: dict[Window, WindowReply]


class CheckReply(BaseModel):
    """One check, and how long it took."""

    status: Health
    latency_ms: float


class HealthNumbers(BaseModel):
    """The last five minutes in short."""

    response_time_ms: Percentiles
    error_rate: float
    cache_hit_ratio: float


class HealthReply(BaseModel):
    """How the server is. Degraded: something is amiss, and prompts are answered all the same."""

    model_config = {
        "json_schema_extra": {
            "examples": [
                {
                    "status": "healthy",
                    "version": __version__,
                    "uptime_seconds": 86400.0,
                    "checks": {"database": {"status": "healthy", "latency_ms": 1.4}},
                    "performance": {
                        "response_time_ms": {"p50": 380.2, "p95": 812.0, "p99": 1204.5},
                        "error_rate": 0.0,
                        "cache_hit_ratio": 0.4,
                    },
                }
            ]
        }
    }

    status: Health
    version: str = __version__
    uptime_seconds: float
    checks: dict[str, CheckReply]
    performance: HealthNumbers


@router.get("/metrics")
async def metrics(caller: CurrentCaller, runtime: RuntimeDep) -> MetricsReply:
    """Everything that is measured. `scope` says how many workers and replicas were counted."""
    vitals = await asyncio.to_thread(read_vitals, runtime.settings.data_dir)
    now = runtime.metrics.snapshot()
    uptime_s = monotonic() - runtime.started_at
    pool = runtime.database.pool_status()
    windows: dict[Window, WindowReply] = {
        window: _window(*runtime.metrics.since(seconds)) for window, seconds in WINDOWS_S.items()
    }
    return MetricsReply(
        scope=ScopeReply(workers=1, replicas=1),
        uptime_seconds=round(uptime_s, 3),
        started_at=datetime.now(UTC) - timedelta(seconds=uptime_s),
        system=_system(vitals),
        process=ProcessReply(
            rss_bytes=vitals.rss_bytes,
            open_files=vitals.open_files,
            event_loop_lag_ms=_percentiles(now.distribution("loop_lag_seconds")),
        ),
        requests=_requests(now, in_flight=runtime.metrics.in_flight, per_second=windows["1m"].per_second),
        model_calls=_model_calls(now),
        agent_pool=dict(runtime.parts["agent_pool"]()),
        cache=dict(runtime.parts["cache"]()),
        database=DatabaseReply(
            backend=runtime.database.backend,
            pool_size=pool.pool_size,
            checked_out=pool.checked_out,
            overflow=pool.overflow,
            wait_ms=_milliseconds(now.distribution("database_wait_seconds")),
        ),
        windows=windows,
    )


@router.get("/agent-pool")
async def agent_pool(caller: CurrentCaller, room: AgentRoomDep) -> dict[str, Any]:
    """The agents that are alive in this worker, how they are used, and what that says about the settings."""
    return room.pool.numbers()


@prometheus.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def prometheus_metrics(runtime: RuntimeDep, request: Request) -> Response:
    """Give the numbers of `/performance/metrics` as Prometheus text; without login where bound to loopback."""
    if not runtime.settings.metrics_open:
        scheme, _, credential = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not credential:
            raise NotAuthenticated("send Authorization: Bearer with a token or an API key")
        await runtime.callers.recognise(credential)
    vitals = await asyncio.to_thread(read_vitals, runtime.settings.data_dir)
    connections = runtime.database.pool_status()
    agents = runtime.parts["agent_pool"]()
    gauges: dict[str, float] = {
        "workers": 1,
        "uptime_seconds": monotonic() - runtime.started_at,
        "requests_in_flight": runtime.metrics.in_flight,
        "process_resident_bytes": vitals.rss_bytes,
        "process_open_files": vitals.open_files,
        "system_cpu_percent": vitals.cpu_percent,
        "system_memory_percent": vitals.memory.percent,
        "system_disk_percent": vitals.disk.percent,
        "database_connections": connections.pool_size,
        "database_connections_checked_out": connections.checked_out,
        "database_connections_overflow": connections.overflow,
        "agent_pool_size": agents.get("size", 0),
        "agent_pool_in_use": agents.get("in_use", 0),
    }
    return Response(render(runtime.metrics.snapshot(), gauges), media_type=CONTENT_TYPE)


@router.get("/health-detailed", responses={503: {"model": HealthReply}})
async def health_detailed(runtime: RuntimeDep, response: Response) -> HealthReply:
    """Every part checked at once, each with a deadline; 503 where prompts cannot be answered."""
    results = await asyncio.gather(*(_timed(check, runtime) for _, check in _CHECKS))
    checks = dict(zip((name for name, _ in _CHECKS), results, strict=True))
    states = {check.status for check in results}
    status: Health = "unhealthy" if "unhealthy" in states else "degraded" if "degraded" in states else "healthy"
    if status == "unhealthy":
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    recent, _ = runtime.metrics.since(WINDOWS_S["5m"])
    answered = recent.count("requests")
    return HealthReply(
        status=status,
        uptime_seconds=round(monotonic() - runtime.started_at, 3),
        checks=checks,
        performance=HealthNumbers(
            response_time_ms=_percentiles(recent.distribution("response_seconds")),
            error_rate=recent.count("requests", status="5xx") / answered if answered else 0.0,
            cache_hit_ratio=float(runtime.parts["cache"]().get("hit_ratio", 0.0)),
        ),
    )


async def _timed(check: Callable[[Runtime], Awaitable[Health]], runtime: Runtime) -> CheckReply:
    started = perf_counter()
    status = await check(runtime)
    return CheckReply(status=status, latency_ms=round((perf_counter() - started) * 1000, 3))


async def _database_health(runtime: Runtime) -> Health:
    try:
        await runtime.database.ping(timeout_s=CHECK_TIMEOUT_S)
    except DatabaseUnavailable:
        return "unhealthy"
    return "healthy"


async def _agents_health(runtime: Runtime) -> Health:
    if not runtime.agent_room.done():
        return "degraded"
    failed = runtime.agent_room.cancelled() or runtime.agent_room.exception() is not None
    return "unhealthy" if failed else "healthy"


async def _loop_health(runtime: Runtime) -> Health:
    recent, _ = runtime.metrics.since(WINDOWS_S["5m"])
    return "degraded" if recent.distribution("loop_lag_seconds").percentile(0.99) > SLOW_LOOP_S else "healthy"


async def _disk_health(runtime: Runtime) -> Health:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            vitals = await asyncio.to_thread(read_vitals, runtime.settings.data_dir)
    except (TimeoutError, OSError):
        return "degraded"
    return "degraded" if vitals.disk.percent >= FULL_DISK_PERCENT else "healthy"


_CHECKS: tuple[Check, ...] = (
    ("database", _database_health),
    ("agents", _agents_health),
    ("event_loop", _loop_health),
    ("disk", _disk_health),
)


def _system(vitals: Vitals) -> SystemReply:
    memory, disk = (
        AmountReply(total_bytes=amount.total_bytes, used_bytes=amount.used_bytes, percent=amount.percent)
        for amount in (vitals.memory, vitals.disk)
    )
    return SystemReply(cpu_percent=vitals.cpu_percent, memory=memory, disk=disk)


def _requests(now: Snapshot, *, in_flight: int, per_second: float) -> RequestsReply:
    names = sorted({key[1] for key in now.counts if key[0] == "requests"})
    routes = [
        RouteReply(
            route=name,
            count=int(now.count("requests", route=name)),
            errors=int(now.count("requests", route=name, status="5xx")),
            response_time_ms=_milliseconds(now.distribution("response_seconds", route=name)),
        )
        for name in names
    ]
    classes = ("1xx", "2xx", "3xx", "4xx", "5xx")
    by_status = {status: int(now.count("requests", status=status)) for status in classes}
    return RequestsReply(
        total=sum(by_status.values()),
        errors=by_status["5xx"],
        in_flight=in_flight,
        per_second=per_second,
        response_time_ms=_milliseconds(now.distribution("response_seconds")),
        overhead_ms=_milliseconds(now.distribution("overhead_seconds")),
        by_status=by_status,
        routes=sorted(routes, key=lambda route: -route.count),
    )


def _model_calls(now: Snapshot) -> ModelCallsReply:
    names = sorted({(key[1], key[2]) for key in now.counts if key[0] == "model_calls"})
    return ModelCallsReply(
        total=int(now.count("model_calls")),
        errors=int(now.count("model_calls", outcome="error")),
        retries=int(now.count("model_retries")),
        latency_ms=_milliseconds(now.distribution("model_seconds")),
        time_to_first_token_ms=_milliseconds(now.distribution("first_token_seconds")),
        input_tokens=int(now.count("model_tokens", direction="input")),
        output_tokens=int(now.count("model_tokens", direction="output")),
        cost_usd=now.count("model_cost_usd"),
        models=[
            ModelReply(
                provider=provider,
                model=model,
                total=int(now.count("model_calls", provider=provider, model=model)),
                errors=int(now.count("model_calls", provider=provider, model=model, outcome="error")),
                latency_ms=_milliseconds(now.distribution("model_seconds", provider=provider, model=model)),
            )
            for provider, model in names
        ],
    )


def _window(recent: Snapshot, seconds: float) -> WindowReply:
    total = int(recent.count("requests"))
    return WindowReply(
        seconds=round(seconds, 3),
        requests=total,
        errors=int(recent.count("requests", status="5xx")),
        per_second=round(total / seconds, 3),
        response_time_ms=_milliseconds(recent.distribution("response_seconds")),
        model_calls=int(recent.count("model_calls")),
        model_errors=int(recent.count("model_calls", outcome="error")),
    )


def _milliseconds(seconds: Distribution) -> Milliseconds:
    return Milliseconds(
        count=seconds.count,
        mean=seconds.mean * 1000,
        p50=seconds.percentile(0.5) * 1000,
        p95=seconds.percentile(0.95) * 1000,
        p99=seconds.percentile(0.99) * 1000,
        max=seconds.largest * 1000,
    )


def _percentiles(seconds: Distribution) -> Percentiles:
    whole = _milliseconds(seconds)
    return Percentiles(p50=whole.p50, p95=whole.p95, p99=whole.p99)
