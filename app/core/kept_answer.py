"""An answer as bytes: what the tiers of the cache keep, and what goes out unread when a known question comes again."""

from dataclasses import dataclass
from decimal import Decimal
from time import time
from typing import Any

from pydantic_core import from_json, to_json

from app.core.cache_key import CacheKey
from app.core.run import Answer, ToolCall, Usage

Generation = tuple[int, int]
"""What was current when a run began: for all agents, and for its own."""

_REPLY = b',"reply":{'


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept answer as read back, with what stands beside it."""

    answer: Answer
    generation: Generation
    stored_at: float
    """Unix time. Only differences of less than a life time are taken of it, and they are bounded."""
    life_s: float


def write(key: CacheKey, answer: Answer, *, generation: Generation, life_s: float) -> bytes:
    """The bytes of `answer` under `key`. They carry digest and scope, so that whoever reads them can check both."""
    beside = {
        "key": key.digest.hex(),
        "scope": key.scope,
        "generation": generation,
        "stored_at": time(),
        "life_s": life_s,
        "id": answer.id,
        "requests": answer.usage.requests,
        "cost": None if answer.cost_usd is None else str(answer.cost_usd),
        "model_s": answer.model_s,
        "finish": answer.finish_reason,
        "calls": [[call.call_id, call.tool, call.arguments] for call in answer.tool_calls],
        "messages": None if answer.messages is None else answer.messages.decode(),
    }
    # The reply stands last, so that it can be cut out: see `reply_of`.
    return to_json(beside)[:-1] + _REPLY + reply_fields(answer, cached=True) + b"}}"


def reply_fields(answer: Answer, *, cached: bool) -> bytes:
    """The fields of the contract's reply that are the same for everybody who gets this answer, without the braces."""
    usage = answer.usage
    fields = {
        "response": answer.output,
        "agent": answer.agent,
        "model": answer.model,
        "conversation_id": answer.conversation_id,
        "cached": cached,
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
            "requests": usage.requests,
        },
        "cost_usd": None if answer.cost_usd is None else float(answer.cost_usd),
    }
    return to_json(fields)[1:-1]


def reply_of(value: bytes) -> bytes:
    """The fields of the reply in a kept value, as `reply_fields` wrote them; nothing is parsed."""
    # Whatever stands before it is JSON, in which a quote inside a text is escaped: the mark is found once.
    return value[value.index(_REPLY) + len(_REPLY) : -2]


def read(value: bytes, key: CacheKey) -> Kept | None:
    """The answer in `value`; `None` for what is broken, or is the answer to something or somebody else."""
    try:
        entry: dict[str, Any] = from_json(value)
        if entry["key"] != key.digest.hex() or entry["scope"] != key.scope:
            return None
        reply: dict[str, Any] = entry["reply"]
        usage = Usage(reply["usage"]["input_tokens"], reply["usage"]["output_tokens"], entry["requests"])
        answer = Answer(
            id=entry["id"],
            output=reply["response"],
            agent=reply["agent"],
            model=reply["model"],
            usage=usage,
            cost_usd=None if entry["cost"] is None else Decimal(entry["cost"]),
            model_s=entry["model_s"],
            cache="HIT",
            storable=True,
            finish_reason=entry["finish"],
            tool_calls=tuple(ToolCall(*call) for call in entry["calls"]),
            messages=None if entry["messages"] is None else entry["messages"].encode(),
        )
        return Kept(answer, tuple(entry["generation"]), entry["stored_at"], entry["life_s"])
    except (ValueError, KeyError, TypeError, ArithmeticError):
        return None
