"""The response cache in the performance API: its numbers, and clearing it."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from app.api.dependencies import Admin, CurrentCaller, RuntimeDep
from app.core.run import Caller

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
    """The response cache of the whole server; bytes and entries are of all workers together."""

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
    """How the response cache is doing, in all workers."""
    return cache_reply((await runtime.totals.read()).part("cache"), caller)


def cache_reply(part: dict[str, Any], caller: Caller) -> CacheReply:
    """The cache as `caller` may see it: which agents others use is for administrators."""
    return CacheReply.model_validate({**part, "saved_by_agent": part["saved_by_agent"] if caller.is_admin else {}})


@router.post("/cache/clear")
async def clear_cache(
    runtime: RuntimeDep, _: Admin, agent: Annotated[str | None, Query(min_length=1, max_length=200)] = None
) -> ClearedReply:
    """Forget every answer, or those of one agent, in every worker and replica, before this returns."""
    return ClearedReply(cleared=await runtime.cache.clear(agent))
