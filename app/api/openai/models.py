"""`GET /v1/models`: every agent is a model."""

import time
from time import monotonic
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from app.agent_room import AgentRoom
from app.api.dependencies import AgentRoomDep, CurrentCaller, RuntimeDep
from app.core.run import Caller
from app.errors import FieldFault, ModelNotFound, NotFound
from app.runtime import Runtime

if TYPE_CHECKING:
    from app.core.agents import AgentDefinition

router = APIRouter(prefix="/v1", tags=["openai"])


class ModelReply(BaseModel):
    """An agent in OpenAI's words; `created` is when this server started, in Unix seconds."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mnemosine"
    description: str


class ModelsReply(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelReply]


@router.get("/models")
async def list_models(caller: CurrentCaller, runtime: RuntimeDep, room: AgentRoomDep) -> ModelsReply:
    """The agents that this caller may use, by name."""
    return ModelsReply(data=[_model(runtime, agent) for agent in room.agents.of(caller)])


@router.get("/models/{name:path}")
async def show_model(name: str, caller: CurrentCaller, runtime: RuntimeDep, room: AgentRoomDep) -> ModelReply:
    """One of them; a 404 names those that exist."""
    return _model(runtime, agent_called(room, name, caller))


def agent_called(room: AgentRoom, name: str, caller: Caller) -> "AgentDefinition":
    """The agent that a request means by its `model`. Raises `ModelNotFound`."""
    try:
        return room.agents.get(name, caller)
    except NotFound as error:
        raise ModelNotFound(error.detail, errors=[FieldFault("model", error.detail)]) from error


def _model(runtime: Runtime, agent: "AgentDefinition") -> ModelReply:
    started = int(time.time() - (monotonic() - runtime.started_at))
    return ModelReply(id=agent.name, created=started, description=agent.description)
