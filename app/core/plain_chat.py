"""The common case of OpenAI chat without its objects: a request is bytes with a gap, an answer is one text.

Pydantic AI's mapping costs 400 µs a request, nearly all of it to find out again what is the same every time. Here it
is asked once for each kind of request, and once for each kind of usage; tests compare what comes out. A stream asks
with such bytes as well, and its end is read like an answer.
"""

# pyright: reportPrivateUsage=false
# What resembles a frame, and the names of finish reasons, are Pydantic AI's.

import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self, cast
from uuid import uuid4

import httpx2
from pydantic_ai import ModelResponse, RequestUsage, TextPart
from pydantic_ai._framing import resembles_frame
from pydantic_ai.models import Model
from pydantic_ai.models.openai._chat_completions import (
    CHAT_FINISH_REASON_MAP,
    LenientChatCompletion,
    LenientChatCompletionChunk,
)
from pydantic_ai.models.openai._response_fields import map_usage
from pydantic_ai.profiles import DEFAULT_THINKING_TAGS
from pydantic_core import from_json

MARK = uuid4().hex
"""Stands where the prompt will be while a form is made. Nobody else knows it."""

_ANSWER = frozenset({"id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier"})
_CHOICE = frozenset({"index", "message", "finish_reason", "logprobs"})
_MESSAGE = frozenset({"role", "content", "refusal", "annotations", "tool_calls", "function_call"})
_COUNTS = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_PROBES = ((7919, 104_729), (1_299_709, 15_485_863))
"""Two requests' tokens, in and out, that nothing but the counts themselves gives twice."""
_ANSWERED: dict[str, Any] = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "x",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}],
}
_STREAMED: dict[str, Any] = {
    "id": "x",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "x",
    "choices": [{"index": 0, "finish_reason": "stop", "delta": {"role": "assistant", "content": "x"}}],
}
_MOST_KINDS = 64
_UNKNOWN: Any = object()

_quoted: Callable[[str], str] = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Form:
    """A request that is complete but for its prompt."""

    head: httpx2.Request
    before: bytes
    after: bytes
    timeout_s: float | None

    @classmethod
    def of(cls, head: httpx2.Request, body: bytes, timeout_s: float | None) -> Self | None:
        """The form of a request whose prompt is `MARK`; `None` where that is not a text of its own."""
        if body.count(MARK.encode()) != 1:
            return None
        before, gap, after = body.partition(f'"{MARK}"'.encode())
        return cls(head, before, after, timeout_s) if gap else None

    def filled(self, prompt: str) -> bytes:
        """The body with `prompt`, which `is_plain`."""
        return self.before + _quoted(prompt).encode() + self.after


def is_plain(prompt: str) -> bool:
    """Whether `prompt` goes out as it is: with words in it, and without what Pydantic AI would remark upon."""
    if not prompt or prompt.isspace():
        return False
    return (prompt.isascii() and "<" not in prompt and "&" not in prompt) or not resembles_frame(prompt)


class PlainUsages:
    """What a provider counted, where that is no more than tokens in and out.

    `mapped` is Pydantic AI's reading of a `usage`, which is asked once for each kind that there is. It may raise
    `ValueError`.
    """

    def __init__(self, mapped: Callable[[dict[str, Any]], RequestUsage]) -> None:
        self._mapped = mapped
        self._kinds: dict[str, RequestUsage | None] = {}

    def read(self, usage: object) -> RequestUsage | None:
        """The counts of `usage`, the JSON of an answer; `None` where there is more to it."""
        if type(usage) is not dict:
            return None
        told = cast("dict[str, Any]", usage)
        asked: Any = told.get("prompt_tokens")
        said: Any = told.get("completion_tokens")
        total = told.get("total_tokens")
        if not (type(asked) is type(said) is type(total) is int and asked >= 0 and said >= 0 and total == asked + said):
            return None
        rest = {name: value for name, value in told.items() if name not in _COUNTS} if len(told) > 3 else {}
        kind = repr(rest) if rest else ""
        pattern = self._kinds.get(kind, _UNKNOWN)
        if pattern is _UNKNOWN:
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            pattern = self._kinds[kind] = self._learn(rest) if _is_zero(rest) else None
        if pattern is None:
            return None
        used = copy(pattern)
        used.details = dict(pattern.details)
        used.input_tokens, used.output_tokens = asked, said
        return used

    def _learn(self, rest: dict[str, Any]) -> RequestUsage | None:
        found: list[RequestUsage] = []
        for asked, said in _PROBES:
            usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said, **rest}
            try:
                used = self._mapped(usage)
            except ValueError:
                return None
            if (used.input_tokens, used.output_tokens) != (asked, said):
                return None
            used.input_tokens = used.output_tokens = 0
            found.append(used)
        return found[0] if found[0] == found[1] else None


class PlainAnswers:
    """Reads the answers to one model that are one text and nothing else, as `model` itself would read them."""

    def __init__(self, model: Any, name: str, url: str) -> None:
        self._model = model
        self._name = name
        self._url = url
        self._usages = PlainUsages(self._mapped)
        self._streamed_usages = PlainUsages(self._mapped_of_stream)

    def read(self, raw: bytes) -> ModelResponse | None:
        """The response, or `None` for anything that is not quite plain."""
        try:
            answer: Any = from_json(raw)
            (choice,) = answer["choices"]
            message = choice["message"]
            if not (
                answer["object"] == "chat.completion"
                and message.get("role") == "assistant"
                and DEFAULT_THINKING_TAGS[0] not in message["content"]
                and _ANSWER.issuperset(answer)
                and _CHOICE.issuperset(choice)
                and _MESSAGE.issuperset(message)
                and choice.get("logprobs") is message.get("refusal") is message.get("function_call") is None
                and not message.get("tool_calls")
                and not message.get("annotations")
            ):
                return None
            return self._response(answer, choice, message["content"], None)
        except (ValueError, LookupError, TypeError, AttributeError):
            return None

    def read_stream(self, chunks: Sequence[object], began: datetime) -> ModelResponse | None:
        """The same for a stream that began at that time, by the chunks that a `PlainStream` gives."""
        try:
            chunk: Any
            (chunk,) = chunks
            (choice,) = chunk["choices"]
            if chunk["object"] != "chat.completion.chunk":
                return None
            return self._response(chunk, choice, choice["delta"]["content"], began)
        except (ValueError, LookupError, TypeError):
            return None

    def _response(self, answer: Any, choice: Any, text: Any, began: datetime | None) -> ModelResponse | None:
        """With `began` that of a stream."""
        usages = self._usages if began is None else self._streamed_usages
        reason, created, model, id_ = choice["finish_reason"], answer["created"], answer["model"], answer["id"]
        if not (
            type(text) is type(model) is type(id_) is type(reason) is str
            and text
            and model
            and id_
            and type(created) is int
            and 0 < created < 10_000_000_000
            and type(choice.get("index")) is int
            and (finish := CHAT_FINISH_REASON_MAP.get(reason)) is not None
            and isinstance(answer.get("system_fingerprint"), str | None)
            and isinstance(tier := answer.get("service_tier"), str | None)
            and (used := usages.read(answer["usage"])) is not None
        ):
            return None
        provided = {"service_tier": tier} if tier else {}
        at, finished = {"timestamp": datetime.fromtimestamp(created, UTC)}, {"finish_reason": reason}
        details = {**finished, **provided, **at} if began is None else {**at, **provided, **finished}
        return ModelResponse(
            parts=[TextPart(text)],
            usage=used,
            model_name=model,
            timestamp=began or datetime.now(UTC),
            provider_details=details,
            provider_response_id=id_,
            provider_name=self._name,
            provider_url=self._url,
            canonical_system=self._model._canonical_system_stamp,
            finish_reason=finish,
        )

    def _mapped(self, usage: dict[str, Any]) -> RequestUsage:
        return self._model._map_usage(LenientChatCompletion.model_validate(_ANSWERED | {"usage": usage}))

    def _mapped_of_stream(self, usage: dict[str, Any]) -> RequestUsage:
        chunk = LenientChatCompletionChunk.model_validate(_STREAMED | {"usage": usage})
        # A stream adds up what its chunks say.
        return RequestUsage() + map_usage(chunk, self._name, self._url, self._model.model_name)


def _is_zero(told: object) -> bool:
    match told:
        case dict():
            return all(map(_is_zero, cast("dict[str, object]", told).values()))
        case _:
            return told is None or (type(told) is int and told == 0)


def can_be_plain(model: Model[Any]) -> bool:
    """Whether answers of `model` hold no marks of Pydantic AI's own, which would have to be taken out again."""
    profile = model.profile
    return (
        not profile.get("may_tokenize_special_tokens_in_content", False)
        and profile.get("thinking_tags", DEFAULT_THINKING_TAGS) == DEFAULT_THINKING_TAGS
    )
