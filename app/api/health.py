"""`/livez`, `/readyz`, `/health`: is the process alive, and can it serve what it promises."""

import asyncio
from time import monotonic
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from app import __version__
from app.api.dependencies import RuntimeDep
from app.errors import DatabaseUnavailable
from app.runtime import Runtime

router = APIRouter(tags=["health"])

CHECK_TIMEOUT_S = 0.5
"""A health check must not hang with what it checks."""


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Whether prompts can be answered, and which part is missing if not."""

    status: Literal["ready", "starting", "draining", "unavailable"]
    reason: str | None = None
    shared_store: Literal["up", "read-only", "down"]
    """Prompts are answered without it: every process then remembers nothing new and counts its limits alone."""
    version: str = __version__
    uptime_seconds: float


@router.get("/livez")
async def alive() -> Alive:
    """200 as long as the process answers at all; restarting it would mend nothing that this does not say."""
    return Alive()


@router.get("/readyz", responses={503: {"model": Ready}})
@router.get("/health", responses={503: {"model": Ready}})
async def ready(runtime: RuntimeDep, response: Response) -> Ready:
    """200 where prompts can be answered, else 503 with the name of what is missing."""
    status, reason = await _readiness(runtime)
    if status != "ready":
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    state = runtime.store.numbers().state
    return Ready(
        status=status, reason=reason, shared_store=state, uptime_seconds=round(monotonic() - runtime.started_at, 3)
    )


async def _readiness(runtime: Runtime) -> tuple[Literal["ready", "starting", "draining", "unavailable"], str | None]:
    if runtime.draining.is_set():
        return "draining", "shutdown"
    if not runtime.agent_room.done():
        return "starting", "agents"
    if runtime.agent_room.cancelled() or runtime.agent_room.exception() is not None:
        return "unavailable", "agents"
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await runtime.database.ping()
    except (DatabaseUnavailable, TimeoutError):
        return "unavailable", "database"
    return "ready", None
