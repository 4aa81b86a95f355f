"""What happened between the moments that were noted down: the points of the charts."""

from collections.abc import Iterable
from dataclasses import dataclass

from app.core.metrics import Distribution, Snapshot
from app.core.picture import Noted
from app.stores.scoreboard import Moment


@dataclass(frozen=True, slots=True)
class Point:
    """One stretch of time that ends at `at` (seconds since 1970); times are in milliseconds, `None` is unknown."""

    at: float
    seconds: float
    requests_per_second: float
    errors_per_second: float
    response_p50_ms: float | None
    response_p95_ms: float | None
    response_p99_ms: float | None
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None
    model_calls_per_second: float
    model_errors_per_second: float
    cache_hit_ratio: float | None
    saved_usd: float
    in_flight: float
    agents_live: float
    agents_in_use: float
    connections_in_use: float
    connections_overflow: float
    database_wait_p95_ms: float | None
    loop_lag_p99_ms: float | None
    memory_bytes: float
    cpu_percent: float | None


def points(moments: Iterable[Moment]) -> list[Point]:
    """A point for each stretch between two moments. Replicas that come or go count from when they were seen."""
    found: list[Point] = []
    before: tuple[Moment, Noted] | None = None
    for moment in moments:
        noted = Noted.decode(moment.body)
        if before is not None:
            earlier = before[1].counted
            # What a new run has counted, it has counted since its start, which came after the moment before.
            fresh = moment.run != before[0].run
            counted = Snapshot()
            for machine, snapshot in noted.counted.items():
                if machine in earlier and not fresh:
                    counted = counted.plus(snapshot.minus(earlier[machine]))
                elif fresh:
                    counted = counted.plus(snapshot)
            found.append(_point(moment.at, moment.at - before[0].at, counted, noted.levels))
        before = (moment, noted)
    return found


def _point(at: float, seconds: float, counted: Snapshot, levels: dict[str, float]) -> Point:
    per_second = 1 / max(seconds, 1e-3)
    response, first = counted.distribution("response_seconds"), counted.distribution("first_token_seconds")
    asked = counted.count("cache_lookups")
    return Point(
        at=at,
        seconds=seconds,
        requests_per_second=counted.count("requests") * per_second,
        errors_per_second=counted.count("requests", status="5xx") * per_second,
        response_p50_ms=_ms(response, 0.5),
        response_p95_ms=_ms(response, 0.95),
        response_p99_ms=_ms(response, 0.99),
        first_token_p50_ms=_ms(first, 0.5),
        first_token_p95_ms=_ms(first, 0.95),
        model_calls_per_second=counted.count("model_calls") * per_second,
        model_errors_per_second=counted.count("model_calls", outcome="error") * per_second,
        cache_hit_ratio=1 - counted.count("cache_lookups", outcome="miss") / asked if asked else None,
        saved_usd=counted.count("cache_saved_cost_usd"),
        in_flight=levels.get("requests_in_flight", 0),
        agents_live=levels.get("agent_pool_size", 0),
        agents_in_use=levels.get("agent_pool_in_use", 0),
        connections_in_use=levels.get("database_connections_checked_out", 0),
        connections_overflow=levels.get("database_connections_overflow", 0),
        database_wait_p95_ms=_ms(counted.distribution("database_wait_seconds"), 0.95),
        loop_lag_p99_ms=_ms(counted.distribution("loop_lag_seconds"), 0.99),
        memory_bytes=levels.get("process_resident_bytes", 0),
        cpu_percent=levels.get("system_cpu_percent"),
    )


def _ms(held: Distribution, q: float) -> float | None:
    return held.percentile(q) * 1000 if held.buckets else None
