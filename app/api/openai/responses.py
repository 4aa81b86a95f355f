"""`/v1/responses`: an agent behind OpenAI's Responses API, with answers that are kept and gone on from."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from pydantic_core import to_json

from app.api.attention import attended
from app.api.cache_headers import cache_headers, cache_mode
from app.api.dependencies import AgentRoomDep, CurrentCaller, LimitedCaller, RuntimeDep
from app.api.event_stream import EventStream
from app.api.idempotency import IdempotentRoute
from app.api.openai.chat_reply import said
from app.api.openai.models import agent_called
from app.api.openai.parameters import answers_with_text
from app.api.openai.responses_reply import ResponseEvents, ResponseObject, response_id
from app.api.openai.responses_request import ResponsesBody
from app.api.visit import visit_of
from app.core.responses import Talk, written_talk
from app.core.run import Answer, RunEvent
from app.errors import FieldFault, NotFound

router = APIRouter(prefix="/v1", tags=["openai"], route_class=IdempotentRoute)

_ANSWERED: dict[str, Any] = {
    "description": "A `response`, or its events as server-sent events where `stream` is true.",
    "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
}
_KEPT: dict[str, Any] = {
    "description": "The response.",
    "content": {"application/json": {"schema": {"type": "object"}}},
}


class DeletedReply(BaseModel):
    """A response that is kept no longer."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


@router.post("/responses", responses={200: _ANSWERED}, response_class=Response)
async def respond(
    body: ResponsesBody, caller: LimitedCaller, runtime: RuntimeDep, room: AgentRoomDep, request: Request
) -> Response:
    """The agent's answer, kept for 30 days unless `store` is false."""
    agent = agent_called(room, body.model, caller)
    body.check_past()
    before = Talk()
    if body.previous_response_id is not None:
        try:
            before = await runtime.responses.talk(caller, body.previous_response_id)
        except NotFound as error:
            raise NotFound(error.detail, errors=[FieldFault("previous_response_id", error.detail)]) from error
    asked = body.asked(
        agent,
        before,
        cache_mode=cache_mode("use", request.headers.get("cache-control", "")),
        conversation_id=body.conversation_id,
    )
    question = asked.question
    response = ResponseObject(body, question.conversation_id)

    async def keep(answer: Answer) -> None:
        if body.store is not False:
            talk = written_talk(question, answer, said(answer), asked.rules)
            written = to_json(response.answered(answer))
            await runtime.responses.keep(caller, response_id(answer.id), written, talk)

    if body.stream:
        wire = ResponseEvents(response, whole=question.output_schema is not None or not answers_with_text(agent))
        return EventStream(_kept(room.prompts.stream(caller, question), keep), wire, runtime.streams)

    async def reply() -> Response:
        answer = await room.prompts.answer(caller, question)
        if answer.cache != "HIT":
            visit_of(request.scope).stages_ms["model"] = answer.model_s * 1000
        await keep(answer)
        headers = cache_headers(answer.cache, age_s=answer.age_s, ttl_s=answer.ttl_s)
        return Response(to_json(response.answered(answer)), headers=headers, media_type="application/json")

    return await attended(request, reply())


@router.get("/responses/{response_id}", responses={200: _KEPT}, response_class=Response)
async def show_response(response_id: str, caller: CurrentCaller, runtime: RuntimeDep) -> Response:
    """A kept response of the caller's own."""
    return Response(await runtime.responses.body(caller, response_id), media_type="application/json")


@router.delete("/responses/{response_id}")
async def delete_response(response_id: str, caller: CurrentCaller, runtime: RuntimeDep) -> DeletedReply:
    """Forget a kept response of the caller's own; what went on from it stays."""
    await runtime.responses.forget(caller, response_id)
    return DeletedReply(id=response_id)


@asynccontextmanager
async def _kept(
    run: AbstractAsyncContextManager[AsyncIterator[RunEvent]], keep: Callable[[Answer], Awaitable[None]]
) -> AsyncGenerator[AsyncIterator[RunEvent]]:
    """`run`, with its answer kept before it is passed on."""
    async with run as events:

        async def passed_on() -> AsyncGenerator[RunEvent]:
            async for event in events:
                if isinstance(event, Answer):
                    await keep(event)
                yield event

        passing = passed_on()
        try:
            yield passing
        finally:
            await passing.aclose()
