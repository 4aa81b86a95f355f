"""What the server measured: the whole picture, of all workers and replicas."""

from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from app.api.dependencies import AgentRoomDep, CurrentCaller, RuntimeDep
from app.api.json_route import JsonRoute
from app.api.v1.response_cache import CacheReply, RecommendationReply, cache_reply
from app.core.metrics import Distribution, Snapshot, Window
from app.core.parts import milliseconds
from app.core.vitals import Vitals

router = APIRouter(prefix="/api/v1/performance", tags=["performance"], route_class=JsonRoute)


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
    """The serving processes together; memory that they share counts in each of them."""

    rss_bytes: int
    open_files: int
    event_loop_lag_ms: Percentiles


class WorkerReply(BaseModel):
    """One serving process; the first is the one that answers."""

    pid: int
    uptime_seconds: float
    rss_bytes: int
    open_files: int
    in_flight: int


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


class PooledAgentReply(BaseModel):
    """One live agent of one worker."""

    agent: str
    model: str
    uses: int
    in_use: int
    created_at: datetime
    last_used_at: datetime
    idle_seconds: float


class SlotsReply(BaseModel):
    """How many runs may happen at once, of an agent or on a provider, over all workers."""

    name: str
    limit: int
    in_use: int
    refused: int
    wait_ms: Milliseconds


class PoolReply(BaseModel):
    """Live agents of all workers; `capacity` is that of all workers together. Empty while the agents are loaded."""

    model_config = {
        "extra": "allow",
        "json_schema_extra": {
            "examples": [
                {
                    "capacity": 40,
                    "size": 12,
                    "in_use": 3,
                    "hits": 9612,
                    "misses": 12,
                    "evictions": 0,
                    "idle_closings": 0,
                    "hit_ratio": 0.9988,
                    "creation_ms": {"count": 12, "mean": 1.1, "p50": 0.9, "p95": 2.2, "p99": 2.3, "max": 2.3},
                    "agents": [],
                    "slots": [],
                    "recommendations": [],
                }
            ]
        },
    }

    capacity: int = 0
    size: int = 0
    in_use: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    idle_closings: int = 0
    hit_ratio: float = 0
    creation_ms: Milliseconds = Milliseconds()
    agents: list[PooledAgentReply] = []
    slots: list[SlotsReply] = []
    recommendations: list[RecommendationReply] = []


class DatabaseReply(BaseModel):
    """The pools of connections of all workers together."""

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
                    "scope": {"workers": 4, "replicas": 1},
                    "reach": "machine",
                    "uptime_seconds": 86400.0,
                    "started_at": "2026-11-24T00:00:00Z",
                    "requests": {"total": 1000, "errors": 0, "in_flight": 3, "response_time_ms": _EXAMPLE_MS},
                }
            ]
        }
    }

    scope: ScopeReply
    reach: Literal["machine", "replicas", "store away"]
    """`store away`: there may be more replicas, and the store that would say so does not answer."""
    uptime_seconds: float
    started_at: datetime
    system: SystemReply
    process: ProcessReply
    workers: list[WorkerReply]
    requests: RequestsReply
    model_calls: ModelCallsReply
    agent_pool: PoolReply
    cache: CacheReply
    database: DatabaseReply
    windows: dict[Window, WindowReply]


@router.get("/metrics")
async def metrics(caller: CurrentCaller, runtime: RuntimeDep) -> MetricsReply:
    """Everything that is measured. `scope` says how many workers and replicas were counted."""
    picture = await runtime.totals.read()
    vitals = runtime.totals.vitals
    # The first report of a worker reads them, and it comes before the first request.
    assert vitals is not None
    total = picture.total
    windows: dict[Window, WindowReply] = {
        name: _window(counted, seconds) for name, (counted, seconds) in picture.windows.items()
    }
    return MetricsReply(
        scope=ScopeReply(workers=len(picture.workers), replicas=picture.replicas),
        reach=picture.reach,
        uptime_seconds=round(picture.uptime_s, 3),
        started_at=datetime.fromtimestamp(picture.started_at, UTC),
        system=_system(vitals),
        process=ProcessReply(
            rss_bytes=int(picture.level("process_resident_bytes")),
            open_files=int(picture.level("process_open_files")),
            event_loop_lag_ms=percentiles(total.distribution("loop_lag_seconds")),
        ),
        workers=[
            WorkerReply(
                pid=worker.pid,
                uptime_seconds=round(worker.uptime_s, 3),
                rss_bytes=int(worker.levels.get("process_resident_bytes", 0)),
                open_files=int(worker.levels.get("process_open_files", 0)),
                in_flight=int(worker.levels["requests_in_flight"]),
            )
            for worker in picture.workers
        ],
        requests=_requests(
            total, in_flight=int(picture.level("requests_in_flight")), per_second=windows["1m"].per_second
        ),
        model_calls=_model_calls(total),
        agent_pool=PoolReply.model_validate(picture.part("agent_pool")),
        cache=cache_reply(picture.part("cache"), caller),
        database=DatabaseReply(
            backend=runtime.database.backend,
            pool_size=int(picture.level("database_connections")),
            checked_out=int(picture.level("database_connections_checked_out")),
            overflow=int(picture.level("database_connections_overflow")),
            wait_ms=_milliseconds(total.distribution("database_wait_seconds")),
        ),
        windows=windows,
    )


@router.get("/agent-pool")
async def agent_pool(caller: CurrentCaller, room: AgentRoomDep, runtime: RuntimeDep) -> PoolReply:
    """The agents that are alive in all workers, how they are used, and what that says about the settings."""
    return PoolReply.model_validate((await runtime.totals.read()).part("agent_pool"))


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
    return Milliseconds.model_validate(milliseconds(seconds))


def percentiles(seconds: Distribution) -> Percentiles:
    """A distribution of seconds in short."""
    whole = _milliseconds(seconds)
    return Percentiles(p50=whole.p50, p95=whole.p95, p99=whole.p99)
