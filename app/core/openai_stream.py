"""A streamed answer of OpenAI chat: bytes to chunks, and to text that needs no interpreting while it comes."""

# pyright: reportPrivateUsage=false
# The SDK's own decoder and validation decide wherever a stream is not the plain one that is read here.

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Self, cast

import httpx2
from openai import APIConnectionError, APIError, APITimeoutError, AsyncOpenAI
from openai._streaming import SSEDecoder, _SSELineDecoder
from openai.types.chat import ChatCompletionChunk
from pydantic import ValidationError
from pydantic_ai.models.openai._chat_completions import LenientChatCompletionChunk
from pydantic_core import from_json

_CONTENT = re.compile(rb'"content"\s*:\s*("(?:[^"\\]|\\.)*")')
_REST_S = 0.5
_MAX_TEMPLATES = 3
"""How often a stream may change all but its text before each of its chunks is parsed as a whole."""


class ChunkStream:
    """A stream of chunks, as Pydantic AI consumes the SDK's `AsyncStream`; texts that are there at once are one chunk.

    `read` gives the next bytes of the body, none at its end; within so many seconds, where they are given. `marks` are
    texts that mean something where they are a chunk of their own: those stay alone.
    """

    def __init__(
        self,
        sdk: AsyncOpenAI,
        request: httpx2.Request,
        read: Callable[[float | None], Awaitable[bytes]],
        close: Callable[[], None],
        *,
        marks: Sequence[str],
        joins: bool = True,
    ) -> None:
        self.joins = joins
        self._sdk = sdk
        self._request = request
        self._read = read
        self._close = close
        self._marks = marks
        self._pending: list[bytes] = []
        self._is_done = self._is_over = False
        self._failure: Exception | None = None
        self._decoder: tuple[_SSELineDecoder, SSEDecoder] | None = None
        self._template: _Template | None = None
        self._templates = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncGenerator[ChatCompletionChunk]:
        while chunks := await self.more():
            for data in chunks:
                yield self.chunk(data)

    async def close(self) -> None:
        """End the provider's stream; the connection is not used again unless it was read to its end."""
        self._close()

    async def more(self) -> list[object]:
        """The JSON of the next chunks, none when the stream has ended. Raises what the SDK raises."""
        if self._failure is not None:
            raise self._failure
        while not self._is_over:
            try:
                # What follows the last word is read so that the connection can be used again; nobody waits long for it.
                piece = await self._read(_REST_S if self._is_done else None)
            except httpx2.TransportError as error:
                if self._is_done:
                    break
                kind = APITimeoutError if isinstance(error, httpx2.TimeoutException) else APIConnectionError
                raise kind(request=self._request) from error
            self._is_over = not piece
            if not self._is_done and (events := self._events(piece)):
                return self._joined(events)
        return []

    def chunk(self, data: object) -> ChatCompletionChunk:
        """What the SDK makes of the JSON of a chunk."""
        try:
            return LenientChatCompletionChunk.model_validate(data)
        except ValidationError:
            return self._sdk._process_response_data(
                data=data, cast_to=ChatCompletionChunk, response=httpx2.Response(200, request=self._request)
            )

    def _events(self, piece: bytes) -> list[bytes]:
        """The data of the events that are complete with `piece`, up to `[DONE]`."""
        if self._decoder is not None:
            return self._decoded(piece)
        self._pending.append(piece)
        if piece and b"\n" not in piece and b"\r" not in piece:
            return []
        arrived = b"".join(self._pending)
        blocks = arrived.split(b"\n\n")
        self._pending = [blocks.pop()]
        events = [block[6:] for block in blocks if block.startswith(b"data: ") and b"\n" not in block]
        if len(events) < len(blocks) or b"\r" in arrived or not piece:
            # More than plain data: comments, names, lines that end otherwise. The SDK knows them all.
            self._decoder = (_SSELineDecoder(), SSEDecoder())
            return self._decoded(arrived)
        return self._up_to_done(events)

    def _decoded(self, piece: bytes) -> list[bytes]:
        assert self._decoder is not None
        lines, decoder = self._decoder
        found: list[bytes] = []
        try:
            for line in [*lines.feed(piece), *(lines.finish() if self._is_over else ())]:
                event = decoder.decode(line.decode())
                found += [] if event is None else [event.data.encode()]
        except UnicodeDecodeError as error:
            if not found:
                raise
            self._failure = error
        return self._up_to_done(found)

    def _up_to_done(self, events: list[bytes]) -> list[bytes]:
        for at, event in enumerate(events):
            if event.startswith(b"[DONE]"):
                self._is_done = True
                return events[:at]
        return events

    def _joined(self, events: list[bytes]) -> list[object]:
        found: list[object] = []
        at = 0
        while at < len(events):
            if self._template is not None and self.joins:
                end = self._template.run(events, at)
                texts = self._template.texts(events[at:end]) if end > at else None
                if texts is not None:
                    joined = "".join(texts)
                    apart = any(mark in texts or mark == joined for mark in self._marks)
                    found += [self._template.data(text) for text in (texts if apart else [joined])]
                    at = end
                    continue
            try:
                data = self._parsed(events[at])
            except (APIError, ValueError) as error:
                if not found:
                    raise
                self._failure = error
                return found
            if self._templates < _MAX_TEMPLATES and (template := _Template.of(events[at], data)) is not None:
                self._template = template
                self._templates += 1
                continue
            found.append(data)
            at += 1
        return found

    def _parsed(self, event: bytes) -> object:
        data: Any
        if b"\\ud" in event:
            data = json.loads(event.decode())
        else:
            try:
                data = from_json(event)
            except ValueError:
                data = json.loads(event.decode())  # The SDK's own parser, for its own error.
        if not isinstance(data, dict):
            raise json.JSONDecodeError("a chunk is an object", event.decode(), 0)
        if error := cast("dict[str, Any]", data).get("error"):
            message = cast("dict[str, Any]", error).get("message") if isinstance(error, dict) else None
            if not isinstance(message, str) or not message:
                message = "An error occurred during streaming"
            raise APIError(message=message, request=self._request, body=cast("object", error))
        return cast("dict[str, Any]", data)


class _Template:
    """What the chunks of a stream have in common: all bytes but those of the text."""

    def __init__(self, before: bytes, after: bytes, chunk: dict[str, Any]) -> None:
        self._before = before
        self._after = after
        self._chunk = chunk
        self._least = len(before) + len(after) + 2

    @classmethod
    def of(cls, event: bytes, data: object) -> "_Template | None":
        """The template that this chunk is made from, if it is one of text alone."""
        said = said_in(data)
        if said is None or not said.text or said.finish_reason is not None or said.usage is not None:
            return None
        found = [*_CONTENT.finditer(event)]
        if len(found) != 1:
            return None
        return cls(event[: found[0].start(1)], event[found[0].end(1) :], cast("dict[str, Any]", data))

    def run(self, events: list[bytes], start: int) -> int:
        """Where the events end that are made from this template, from `start` on."""
        before, after, least = self._before, self._after, self._least
        for at in range(start, len(events)):
            event = events[at]
            if not (event.startswith(before) and event.endswith(after) and len(event) >= least):
                return at
        return len(events)

    def texts(self, events: list[bytes]) -> list[str] | None:
        """The texts of `events`, which differ in nothing else; `None` where that is not so."""
        first, last = len(self._before), -len(self._after)
        listed = b",".join([event[first:last] for event in events])
        if b"\\ud" in listed:
            return None
        try:
            texts: list[object] = from_json(b"[%b]" % listed)
        except ValueError:
            return None
        if len(texts) != len(events) or not all(type(text) is str for text in texts):
            return None
        return cast("list[str]", texts)

    def data(self, text: str) -> dict[str, Any]:
        """A chunk of `text`."""
        choice: dict[str, Any] = self._chunk["choices"][0]
        return {**self._chunk, "choices": [{**choice, "delta": {**choice["delta"], "content": text}}]}


_CHUNK = frozenset(
    ["id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier", "obfuscation"]
)
_CHOICE = frozenset(["index", "delta", "logprobs", "finish_reason"])
_DELTA = frozenset(["role", "content", "refusal", "tool_calls", "function_call"])
_FINISH = frozenset(["stop", "length", "content_filter", "tool_calls", "function_call"])


class Said(NamedTuple):
    """What a plain chunk says."""

    text: str
    finish_reason: str | None
    usage: object


def said_in(data: object) -> Said | None:
    """What this chunk says, if that is text, a reason to finish and usage; `None` where it is anything else."""
    chunk = _object_of(data, _CHUNK)
    choices: Any = None if chunk is None else chunk.get("choices")
    if chunk is None or not isinstance(choices, list):
        return None
    if not choices:
        return Said("", None, chunk.get("usage"))
    choice = _object_of(cast("list[object]", choices)[0], _CHOICE)
    delta = None if choice is None else _object_of(choice.get("delta"), _DELTA)
    if choice is None or delta is None or len(cast("list[object]", choices)) > 1:
        return None
    finish, text = choice.get("finish_reason"), delta.get("content")
    if (
        choice.get("index") != 0
        or choice.get("logprobs") is not None
        or delta.get("role") not in (None, "assistant")
        or delta.get("refusal") is not None
        or delta.get("tool_calls") is not None
        or delta.get("function_call") is not None
        or not (finish is None or (type(finish) is str and finish in _FINISH))
        or not (text is None or type(text) is str)
    ):
        return None
    return Said(text or "", finish, chunk.get("usage"))


def _object_of(value: object, fields: frozenset[str]) -> dict[str, Any] | None:
    """`value` if it is an object that has no other fields than these."""
    if not isinstance(value, dict):
        return None
    known = cast("dict[str, Any]", value)
    return known if fields.issuperset(known) else None


def model_named_in(data: object) -> str | None:
    """The model that a chunk comes from, where it says so."""
    name: Any = cast("dict[str, Any]", data).get("model") if isinstance(data, dict) else None
    return name if isinstance(name, str) else None


_ABOUT = ("id", "object", "created", "model", "system_fingerprint", "service_tier")


class PlainStream:
    """What a stream of plain chunks has said so far."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = marks
        self._about: dict[str, Any] | None = None
        self._texts: list[str] = []
        self._has_choice = False
        self._finish_reason: str | None = None
        self._usage: object = None

    def take(self, data: object) -> str | None:
        """The text that this chunk adds; `None` where the stream is not a plain one any more, and it is not taken."""
        said = said_in(data)
        if said is None or said.text in self._marks:
            return None
        if said.usage is not None and (self._usage is not None or not _is_counted(said.usage)):
            return None
        if said.finish_reason is not None and self._finish_reason not in (None, said.finish_reason):
            return None
        chunk = cast("dict[str, Any]", data)
        about = {name: chunk[name] for name in _ABOUT if name in chunk}
        if self._about is None:
            self._about = about
        elif self._about != about:
            return None
        self._has_choice = self._has_choice or bool(chunk["choices"])
        self._finish_reason = said.finish_reason or self._finish_reason
        self._usage = said.usage if said.usage is not None else self._usage
        if said.text:
            self._texts.append(said.text)
        return said.text

    def chunks(self) -> list[object]:
        """As few chunks as can say the same."""
        if self._about is None:
            return []
        if not self._has_choice:
            return [self._chunk([], self._usage)]
        text = "".join(self._texts)
        last = self._chunk([_choice(text, self._finish_reason)], self._usage)
        if text not in self._marks:
            return [last]
        last["choices"][0]["delta"]["content"] = text[1:]
        return [self._chunk([_choice(text[:1], None)], None), last]

    def _chunk(self, choices: list[Any], usage: object) -> dict[str, Any]:
        return {**(self._about or {}), "choices": choices, "usage": usage}


def _is_counted(usage: object) -> bool:
    """Whether a chunk with this usage passes validation; one that does not is read otherwise, the text included."""
    counts = cast("dict[str, Any]", usage) if isinstance(usage, dict) else {}
    return all(type(counts.get(name)) is int for name in ("prompt_tokens", "completion_tokens", "total_tokens"))


def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    delta = {"role": "assistant", "content": text}
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
