"""Why was this slow, why was this a miss: the story of a recent request."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel

from app.api.dependencies import CurrentCaller, RuntimeDep
from app.core.run import Caller
from app.errors import NotFound

router = APIRouter(prefix="/api/v1/performance", tags=["performance"])


class StageReply(BaseModel):
    """Something that was done for the request; stages may contain each other."""

    name: str
    start_ms: float
    duration_ms: float


class AttemptReply(BaseModel):
    """One request to one model; the next of another model is a fallback, of the same model a retry."""

    model: str
    duration_ms: float
    outcome: str


class CacheDecisionReply(BaseModel):
    """How the cache took part."""

    state: str
    differs: list[str]
    """Of a miss: the ingredients of the key in which the nearest kept answer of the same caller and agent differs."""
    age_seconds: float
    ttl_seconds: float | None


class StoryReply(BaseModel):
    """What happened to one request, and what that means."""

    model_config = {
        "json_schema_extra": {
            "examples": [
                {
                    "request_id": "4f1d2c…",
                    "at": "2026-11-25T12:00:00Z",
                    "route": "POST /api/v1/agent/prompt",
                    "status": 200,
                    "duration_ms": 812.4,
                    "worker": 4242,
                    "error": None,
                    "agent": "default",
                    "model": "openai-chat:gpt-5-mini",
                    "run_id": "9b2e…",
                    "answered_by": "openai-chat:gpt-5-mini",
                    "stages": [{"name": "model", "start_ms": 1.9, "duration_ms": 806.0}],
                    "cache": {"state": "MISS", "differs": ["prompt"], "age_seconds": 0, "ttl_seconds": 3600},
                    "attempts": [{"model": "openai-chat:gpt-5-mini", "duration_ms": 806.0, "outcome": "ok"}],
                    "explanation": [
                        "99 % of the time was spent in the model.",
                        "A miss: the nearest kept answer has another prompt.",
                    ],
                }
            ]
        }
    }

    request_id: str
    at: datetime
    route: str
    status: int
    duration_ms: float
    worker: int
    error: str | None
    agent: str | None
    model: str | None
    run_id: str | None = None
    answered_by: str | None = None
    stages: list[StageReply]
    cache: CacheDecisionReply | None = None
    attempts: list[AttemptReply]
    explanation: list[str]


class StoriesReply(BaseModel):
    """The slowest requests of the last hour, the slowest first."""

    slowest: list[StoryReply]


@router.get("/requests")
async def slowest_requests(caller: CurrentCaller, runtime: RuntimeDep) -> StoriesReply:
    """The slowest requests of the last hour: one's own, or everybody's for an administrator."""
    told = (await runtime.totals.read()).slowest()
    return StoriesReply(slowest=[_reply(story) for story in told if _may_see(caller, story)])


@router.get("/requests/{request_id}")
async def request_story(
    request_id: Annotated[str, Path(pattern=r"^[A-Za-z0-9._\-]{1,128}$")], caller: CurrentCaller, runtime: RuntimeDep
) -> StoryReply:
    """What happened to a recent request: one's own, or any for an administrator. Old ones are forgotten (404)."""
    story = await runtime.totals.story(request_id)
    if story is None or not _may_see(caller, story):
        raise NotFound("this request is not known any more, or was not yours")
    return _reply(story)


def _may_see(caller: Caller, story: dict[str, Any]) -> bool:
    return caller.is_admin or (story["caller_id"] is not None and story["caller_id"] == caller.id)


def _reply(story: dict[str, Any]) -> StoryReply:
    at = datetime.fromtimestamp(story["at"], UTC)
    return StoryReply.model_validate({**story, "at": at, "explanation": _explanation(story)})


_DIFFERS = {
    "scope": "is another caller's",
    "agent": "is of another agent",
    "revision": "is of another revision of the agent",
    "models": "is of another model",
    "instructions": "was made under other instructions",
    "history": "continues another conversation",
    "prompt": "has another prompt",
    "settings": "has other model settings",
    "output_schema": "has another output schema",
    "tools": "has other tools",
}


def _explanation(story: dict[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
    said: list[str] = []
    total_ms = max(story["duration_ms"], 0.001)
    spent: dict[str, float] = {}
    for stage in story["stages"]:
        spent[stage["name"]] = spent.get(stage["name"], 0.0) + stage["duration_ms"]
    if spent:
        name = max(spent, key=lambda each: spent[each])
        said.append(f"{min(100, round(100 * spent[name] / total_ms))} % of the time was spent in: {name}.")
        outside = 1 - sum(spent.values()) / total_ms
        if outside > 0.5:
            said.append(
                f"{round(100 * outside)} % was spent outside of these stages: reading the request, checking it, "
                "or waiting for the processor."
            )
    attempts = story["attempts"]
    failed = [attempt for attempt in attempts if attempt["outcome"] != "ok"]
    if failed:
        said.append(
            f"{len(failed)} of {len(attempts)} requests to models failed: "
            + ", ".join(f"{attempt['model']} ({attempt['outcome']})" for attempt in failed)
            + "."
        )
    if story.get("answered_by") and story["answered_by"] != story["model"]:
        said.append(f"A fallback answered: {story['answered_by']}.")
    cache = story.get("cache")
    if cache is not None:
        said.append(_cache_sentence(cache))
    if story["error"] is not None:
        said.append(f"It ended with the error {story['error']}.")
    return said


def _cache_sentence(cache: dict[str, Any]) -> str:
    match cache["state"]:
        case "HIT":
            return f"Answered from memory; the answer was {cache['age_seconds']:.0f} s old."
        case "COALESCED":
            return "It waited for the run of an equal request instead of asking the model again."
        case "REFRESH":
            return "The client asked for a fresh answer."
        case "BYPASS":
            return "The cache was left out: the request, the agent or the conversation does not allow it."
        case _ if cache["differs"]:
            differences = ", ".join(_DIFFERS.get(name, f"differs in {name}") for name in cache["differs"])
            return f"A miss: the nearest kept answer {differences}."
        case _:
            return "A miss: no answer like it was kept lately, or it had expired."
