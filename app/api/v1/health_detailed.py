"""How the server is, in detail: every part checked at once, each with a deadline."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from time import monotonic, perf_counter
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from app import __version__
from app.api.dependencies import RuntimeDep
from app.api.v1.performance import Percentiles, percentiles
from app.core.picture import Picture
from app.errors import DatabaseUnavailable, StoreUnavailable
from app.runtime import Runtime

router = APIRouter(prefix="/api/v1/performance", tags=["performance"])

CHECK_TIMEOUT_S = 0.5
SLOW_LOOP_S = 0.25
"""A loop that is this late (P99 of five minutes) makes every answer late."""
FULL_DISK_PERCENT = 95

Health = Literal["healthy", "degraded", "unhealthy"]
Reading = asyncio.Task[Picture | None]
"""Everybody's numbers, or `None` where they could not be read in time."""
Finding = tuple[Health, str | None]
"""What a check found, and what is amiss, in words that tell a stranger nothing of use."""
Check = Callable[[Runtime, Reading], Awaitable[Finding]]

_WELL: Finding = ("healthy", None)


class CheckReply(BaseModel):
    """One check, how long it took, and what is amiss."""

    status: Health
    latency_ms: float
    reason: str | None = None


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
                    "checks": {"database": {"status": "healthy", "latency_ms": 1.4, "reason": None}},
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


@router.get("/health-detailed", responses={503: {"model": HealthReply}})
async def health_detailed(runtime: RuntimeDep, response: Response) -> HealthReply:
    """Every part checked at once, each with a deadline; 503 where prompts cannot be answered."""
    reading = asyncio.create_task(_numbers(runtime))
    results = await asyncio.gather(*(_timed(check, runtime, reading) for check in _CHECKS.values()))
    checks = dict(zip(_CHECKS, results, strict=True))
    states = {check.status for check in results}
    status: Health = "unhealthy" if "unhealthy" in states else "degraded" if "degraded" in states else "healthy"
    if status == "unhealthy":
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    picture = await reading
    recent = picture.windows["5m"][0] if picture is not None else runtime.metrics.snapshot()
    answered = recent.count("requests")
    asked = recent.count("cache_lookups")
    return HealthReply(
        status=status,
        uptime_seconds=round(monotonic() - runtime.started_at, 3),
        checks=checks,
        performance=HealthNumbers(
            response_time_ms=percentiles(recent.distribution("response_seconds")),
            error_rate=recent.count("requests", status="5xx") / answered if answered else 0.0,
            cache_hit_ratio=1 - recent.count("cache_lookups", outcome="miss") / asked if asked else 0.0,
        ),
    )


async def _numbers(runtime: Runtime) -> Picture | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await runtime.totals.read()
    except TimeoutError:
        return None


async def _timed(check: Check, runtime: Runtime, reading: Reading) -> CheckReply:
    started = perf_counter()
    status, reason = await check(runtime, reading)
    return CheckReply(status=status, reason=reason, latency_ms=round((perf_counter() - started) * 1000, 3))


async def _database_health(runtime: Runtime, _: Reading) -> Finding:
    try:
        await runtime.database.ping(timeout_s=CHECK_TIMEOUT_S)
    except DatabaseUnavailable:
        return "unhealthy", "the database does not answer"
    return _WELL


async def _agents_health(runtime: Runtime, _: Reading) -> Finding:
    if not runtime.agent_room.done():
        return "degraded", "the agents are being loaded"
    failed = runtime.agent_room.cancelled() or runtime.agent_room.exception() is not None
    return ("unhealthy", "no prompt can be answered; the log says why") if failed else _WELL


async def _loop_health(_: Runtime, reading: Reading) -> Finding:
    picture = await reading
    if picture is None:
        return "degraded", "the numbers could not be read in time"
    late_s = picture.windows["5m"][0].distribution("loop_lag_seconds").percentile(0.99)
    return ("degraded", f"event loops are {late_s:.2g} s late") if late_s > SLOW_LOOP_S else _WELL


async def _store_health(runtime: Runtime, _: Reading) -> Finding:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await runtime.store.ping()
    except StoreUnavailable as error:
        # Each room knows what to do without: a miss, a local count.
        return "degraded", str(error)
    except TimeoutError:
        return "degraded", "the shared store does not answer"
    return _WELL


async def _numbers_health(_: Runtime, reading: Reading) -> Finding:
    picture = await reading
    if picture is None:
        return "degraded", "the numbers could not be read in time"
    return ("degraded", "the numbers are those of this machine alone") if picture.reach == "store away" else _WELL


async def _disk_health(runtime: Runtime, _: Reading) -> Finding:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            disk = await asyncio.to_thread(shutil.disk_usage, runtime.settings.data_dir)
    except (TimeoutError, OSError):
        return "degraded", "the disk does not answer"
    is_full = disk.used >= disk.total * FULL_DISK_PERCENT / 100
    return ("degraded", f"more than {FULL_DISK_PERCENT} % of the disk is in use") if is_full else _WELL


_CHECKS: dict[str, Check] = {
    "database": _database_health,
    "agents": _agents_health,
    "event_loop": _loop_health,
    "store": _store_health,
    "numbers": _numbers_health,
    "disk": _disk_health,
}
