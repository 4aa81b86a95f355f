"""`POST /v1/chat/completions`: an agent behind OpenAI's chat."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.attention import attended
from app.api.cache_headers import cache_headers, cache_mode
from app.api.dependencies import AgentRoomDep, LimitedCaller, RuntimeDep
from app.api.event_stream import EventStream
from app.api.idempotency import IdempotentRoute
from app.api.openai.chat_reply import ChatChunks, Model, completion
from app.api.openai.chat_request import ChatBody
from app.api.openai.conversation import conversation_of
from app.api.openai.models import agent_called
from app.api.openai.parameters import answers_with_text
from app.api.visit import visit_of

router = APIRouter(prefix="/v1", tags=["openai"], route_class=IdempotentRoute)

_ANSWERED: dict[str, Any] = {
    "description": "A `chat.completion`, or its chunks as server-sent events where `stream` is true.",
    "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
}


@router.post("/chat/completions", responses={200: _ANSWERED}, response_class=Response)
async def complete_chat(
    body: ChatBody, caller: LimitedCaller, runtime: RuntimeDep, room: AgentRoomDep, request: Request
) -> Response:
    """The agent's answer to the talk so far."""
    agent = agent_called(room, body.model, caller)
    question = body.question(
        agent,
        cache_mode=cache_mode("use", request.headers.get("cache-control", "")),
        conversation=await conversation_of(request, caller, runtime.conversations),
    )
    model = Model(agent.name, agent.revision)
    if body.stream:
        wire = ChatChunks(
            model,
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
            whole=question.output_schema is not None or not answers_with_text(agent),
        )
        return EventStream(room.prompts.stream(caller, question), wire, runtime.streams)

    async def reply() -> Response:
        answer = await room.prompts.answer(caller, question)
        if answer.cache != "HIT":
            visit_of(request.scope).stages_ms["model"] = answer.model_s * 1000
        headers = cache_headers(answer.cache, age_s=answer.age_s, ttl_s=answer.ttl_s)
        return Response(completion(answer, model), headers=headers, media_type="application/json")

    return await attended(request, reply())
