"""`/api/v1/agents`: which agents answer here, and what each of them is."""

from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from app.agent_room import reload_agents
from app.api.dependencies import Admin, AgentRoomDep, CurrentCaller, RuntimeDep
from app.errors import BadConfiguration, Conflict

if TYPE_CHECKING:
    from app.core.agents import AgentDefinition

router = APIRouter(prefix="/api/v1", tags=["agents"])


class CacheReply(BaseModel):
    """How answers of an agent are cached; `ttl` in seconds, `null` for the server's own."""

    enabled: bool
    scope: Literal["user", "shared"]
    ttl: float | None


class ToolReply(BaseModel):
    """One tool; `declared` is false where its effect is `write` for want of a declaration."""

    name: str
    effect: Literal["pure", "read", "write"]
    declared: bool


class AgentReply(BaseModel):
    """An agent as a client may know it: no instructions, no paths."""

    name: str
    description: str
    model: str
    cache: CacheReply


class AgentDetailReply(AgentReply):
    """The same with what determines its answers."""

    fallbacks: list[str]
    max_concurrency: int | None
    tier: Literal["direct", "graph"]
    tier_reason: str
    revision: str
    tools: list[ToolReply]
    tools_at_run: bool
    """Whether further tools become known only in a run."""
    output_schema: dict[str, object] | None
    """`null` for an agent that answers with text."""


@router.get("/agents")
async def list_agents(caller: CurrentCaller, room: AgentRoomDep) -> list[AgentReply]:
    """Every agent that the caller may use, by name."""
    return [AgentReply(**_basics(agent)) for agent in room.agents.of(caller)]


class ReloadReply(BaseModel):
    """What a reload changed in this worker; the others follow within a second."""

    changed: list[str]


@router.post("/agents/reload", responses={409: {}})
async def reload(caller: Admin, runtime: RuntimeDep, room: AgentRoomDep) -> ReloadReply:
    """Read the agents again; a broken one is a 409 that says why, and changes nothing."""
    try:
        changed = await reload_agents(runtime.settings, room)
    except BadConfiguration as error:
        raise Conflict(error.detail, retry_useful=False) from error
    room.reloads.give()
    return ReloadReply(changed=changed)


@router.get("/agents/{name}")
async def show_agent(name: str, caller: CurrentCaller, room: AgentRoomDep) -> AgentDetailReply:
    """One agent; 404 lists the names that exist."""
    agent = room.agents.get(name, caller)
    tier = room.pool.tier_of(agent)
    schema = agent.output_schema if agent.output_schema != {"type": "string"} else None
    return AgentDetailReply(
        **_basics(agent),
        fallbacks=list(agent.fallbacks),
        max_concurrency=agent.options.max_concurrency,
        tier=tier.name,
        tier_reason=tier.reason,
        revision=agent.revision,
        tools=[ToolReply(name=tool.name, effect=tool.effect, declared=tool.declared) for tool in agent.tools],
        tools_at_run=agent.open_tools,
        output_schema=schema,
    )


def _basics(agent: "AgentDefinition") -> "dict[str, Any]":
    cache = agent.options.cache
    return {
        "name": agent.name,
        "description": agent.description,
        "model": agent.model,
        "cache": CacheReply(enabled=cache.enabled, scope=cache.scope, ttl=cache.ttl),
    }
