"""The response cache in the performance API: its numbers, and clearing it."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from app.api.dependencies import Admin, CurrentCaller, RuntimeDep
from app.core.cache_service import Saved

router = APIRouter(prefix="/api/v1/performance", tags=["performance"])


class CleanUpReply(BaseModel):
    """The periodic removal of expired entries."""

    runs: int
    removed: int
    last_run_at: datetime | None
    last_duration_ms: float | None


class SavedReply(BaseModel):
    """What hits and joined runs did not spend."""

    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    seconds: float


class RecommendationReply(BaseModel):
    """What the measurements say about a setting."""

    code: str
    severity: str
    message: str
    setting: str
    current: float
    suggested: float


class CacheReply(BaseModel):
    """The response cache of the worker that answers."""

    enabled: bool
    backend: str
    entries: int
    bytes: int
    max_bytes: int
    ttl_seconds: float
    hits: int
    misses: int
    coalesced: int
    hit_ratio: float
    stores: int
    evictions: int
    expirations: int
    cleanup: CleanUpReply
    saved: SavedReply
    saved_by_agent: dict[str, SavedReply]
    recommendations: list[RecommendationReply]


class ClearedReply(BaseModel):
    """How many entries the worker that answers held."""

    cleared: int


@router.get("/cache")
async def cache(runtime: RuntimeDep, caller: CurrentCaller) -> CacheReply:
    """How the response cache is doing."""
    # Which agents others use is for administrators.
    by_agent = runtime.cache.counts.saved if caller.is_admin else {}
    return CacheReply(
        **runtime.cache.numbers(), saved_by_agent={agent: _saved(saved) for agent, saved in by_agent.items()}
    )


@router.post("/cache/clear")
async def clear_cache(
    runtime: RuntimeDep, _: Admin, agent: Annotated[str | None, Query(min_length=1, max_length=200)] = None
) -> ClearedReply:
    """Forget every answer, or those of one agent, in every worker and replica, before this returns."""
    return ClearedReply(cleared=await runtime.cache.clear(agent))


def _saved(saved: Saved) -> SavedReply:
    return SavedReply(
        requests=saved.requests,
        input_tokens=saved.input_tokens,
        output_tokens=saved.output_tokens,
        cost_usd=float(saved.cost_usd),
        seconds=saved.seconds,
    )
