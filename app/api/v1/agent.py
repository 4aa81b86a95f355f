"""`POST /api/v1/agent/prompt`: a question to an agent, and its answer."""

from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.api.attention import attended
from app.api.cache_headers import cache_headers, cache_mode
from app.api.dependencies import AgentRoomDep, LimitedCaller, RuntimeDep
from app.api.event_stream import EventStream
from app.api.idempotency import IdempotentRoute
from app.api.json_route import Body, Text
from app.api.known_questions import KnownQuestions
from app.api.v1.prompt_events import PromptEvents
from app.api.visit import visit_of
from app.core.run import Answer, CacheMode, OnBusy, Question, RunSettings

router = APIRouter(prefix="/api/v1", tags=["agents"], route_class=IdempotentRoute)

INT64_MAX = 2**63 - 1
MAX_MESSAGE_CHARS = 400_000
MAX_CACHE_TTL_SECONDS = 30 * 86_400

Name = Annotated[Text, Field(min_length=1, max_length=200)]


class ModelSettingsBody(Body):
    """What a caller may change about one run."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    stop: Annotated[list[Annotated[Text, Field(min_length=1, max_length=200)]], Field(max_length=16)] | None = None


class CacheBody(Body):
    """How the response cache takes part in this run."""

    mode: CacheMode = "use"
    ttl: Annotated[int, Field(ge=1, le=MAX_CACHE_TTL_SECONDS)] | None = None
    """Seconds; the agent's own time to live where it is absent."""


class PromptBody(Body):
    """A question to an agent; only `message` is required."""

    message: Annotated[Text, Field(min_length=1, max_length=MAX_MESSAGE_CHARS)]
    agent: Name = "default"
    model: Name | None = None
    conversation_id: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    on_busy: OnBusy = "wait"
    """Whether to wait, or be refused with a 409, while another prompt is answered in the conversation."""
    model_settings: ModelSettingsBody | None = None
    stream: bool = False
    cache: CacheBody = CacheBody()


class UsageReply(BaseModel):
    """What the provider counted."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    requests: int


class PromptReply(BaseModel):
    """A finished answer."""

    id: str
    response: str | dict[str, Any]
    agent: str
    model: str
    conversation_id: str | None
    cached: bool
    usage: UsageReply
    cost_usd: float | None
    """`null` where the price of the model is not known."""
    processing_time_ms: float


_STREAMED: dict[str, Any] = {
    "description": "The answer; as server-sent events where `stream` is true.",
    # No schema: whoever checks a stream by one holds it against each event, which none of OpenAPI 3.1's can mean.
    "content": {"text/event-stream": {}},
}


@router.post("/agent/prompt", response_model=PromptReply, responses={200: _STREAMED})
async def prompt(
    body: PromptBody,
    caller: LimitedCaller,
    runtime: RuntimeDep,
    room: AgentRoomDep,
    request: Request,
    response: Response,
) -> PromptReply | Response:
    """Ask an agent, and wait for its whole answer or, with `"stream": true`, receive it while it is made."""
    question = _question(body, request.headers.get("cache-control", ""))
    visit = visit_of(request.scope)
    if body.stream:
        wire = PromptEvents(visit.request_id, lambda answer: _written(_reply(answer, visit.elapsed_ms)))
        return EventStream(room.prompts.stream(caller, question), wire, runtime.streams)
    answer = await attended(request, room.prompts.answer(caller, question))
    if isinstance(answer, Response):
        return answer
    response.headers.update(cache_headers(answer.cache, age_s=answer.age_s, ttl_s=answer.ttl_s))
    if visit.request_digest is not None:
        known: KnownQuestions = request.app.state.known_questions
        known.learn(visit.request_digest, caller, answer, room.agents.version)
    if answer.cache != "HIT":
        visit.stages_ms["model"] = answer.model_s * 1000
    return _reply(answer, visit.elapsed_ms)


def _question(body: PromptBody, cache_control: str) -> Question:
    chosen = body.model_settings or ModelSettingsBody()
    return Question(
        message=body.message,
        agent=body.agent,
        model=body.model,
        conversation_id=body.conversation_id,
        on_busy=body.on_busy,
        settings=RunSettings(
            temperature=chosen.temperature,
            max_tokens=chosen.max_tokens,
            top_p=chosen.top_p,
            seed=chosen.seed,
            stop=tuple(chosen.stop) if chosen.stop is not None else None,
        ),
        cache_mode=cache_mode(body.cache.mode, cache_control),
        cache_ttl_s=body.cache.ttl,
    )


def _written(reply: PromptReply) -> bytes:
    return reply.__pydantic_serializer__.to_json(reply)


def _reply(answer: Answer, elapsed_ms: float) -> PromptReply:
    return PromptReply(
        id=answer.id,
        response=answer.output,
        agent=answer.agent,
        model=answer.model,
        conversation_id=answer.conversation_id,
        cached=answer.cache in ("HIT", "COALESCED"),
        usage=UsageReply(
            input_tokens=answer.usage.input_tokens,
            output_tokens=answer.usage.output_tokens,
            total_tokens=answer.usage.total_tokens,
            requests=answer.usage.requests,
        ),
        cost_usd=_dollars(answer.cost_usd),
        processing_time_ms=round(elapsed_ms, 3),
    )


def _dollars(cost: Decimal | None) -> float | None:
    return None if cost is None else float(cost)
