"""An answer as a chat completion: whole, or in chunks."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from app.api.cache_headers import cache_headers
from app.api.problems import openai_error
from app.core.run import Answer, RunEvent, Started, TextDelta, ToolCall, Usage
from app.errors import MnemosineError


def said(answer: Answer) -> str:
    """The answer's text; an object is its JSON."""
    return answer.output if isinstance(answer.output, str) else to_json(answer.output).decode()


@dataclass(frozen=True, slots=True)
class Model:
    """The agent that answers, as a model of this server."""

    name: str
    revision: str

    @property
    def fingerprint(self) -> str:
        """Changes when anything that determines an answer does."""
        return f"fp_{self.revision}"


def completion(answer: Answer, model: Model) -> bytes:
    """The whole answer as a `chat.completion`."""
    text = said(answer)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if answer.tool_calls:
        message["content"] = text or None
        message["tool_calls"] = [_call(call) for call in answer.tool_calls]
    return to_json(
        {
            "id": f"chatcmpl-{answer.id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model.name,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}],
            "usage": _usage(answer.usage),
            "system_fingerprint": model.fingerprint,
        }
    )


class ChatChunks:
    """The wire of a streamed chat completion.

    With `whole` the text is held back until it is known to be the answer: a shape that had to be asked for twice must
    not leave twice. Tools that the server runs are not mentioned.
    """

    def __init__(self, model: Model, *, include_usage: bool, whole: bool) -> None:
        self._model = model
        self._whole = whole
        self._include_usage = include_usage
        self._sent: list[str] = []
        self._head = self._text_head = self._text_tail = b""

    def headers(self, started: Started) -> Mapping[str, str]:
        """How the cache took part."""
        return cache_headers(started.cache, age_s=started.age_s, ttl_s=started.ttl_s)

    def event(self, event: RunEvent) -> bytes:
        """The chunks of one event."""
        match event:
            case TextDelta():
                if self._whole:
                    return b""
                self._sent.append(event.text)
                return b"%b%b%b" % (self._text_head, to_json(event.text), self._text_tail)
            case Started():
                self._prepare(event)
                return self._chunk(b'{"role":"assistant","content":"","refusal":null}')
            case Answer():
                return self._rest(event)
            case _:
                return b""

    def failed(self, error: MnemosineError) -> bytes:
        """The error that OpenAI's clients raise."""
        return b"data: %b\n\n" % to_json(openai_error(error))

    def _prepare(self, started: Started) -> None:
        about = {
            "id": f"chatcmpl-{started.id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": self._model.name,
            "system_fingerprint": self._model.fingerprint,
        }
        # All chunks of a stream differ in their delta only, so the rest is written once.
        self._head = b"data: " + to_json(about)[:-1] + b',"choices":['
        usage = b',"usage":null' if self._include_usage else b""
        self._text_head = self._head + b'{"index":0,"delta":{"content":'
        self._text_tail = b'},"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"

    def _chunk(self, delta: bytes, finish_reason: bytes = b"null") -> bytes:
        usage = b',"usage":null' if self._include_usage else b""
        return b'%b{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]%b}\n\n' % (
            self._head,
            delta,
            finish_reason,
            usage,
        )

    def _rest(self, answer: Answer) -> bytes:
        text, sent = said(answer), "".join(self._sent)
        chunks: list[bytes] = []
        if text.startswith(sent) and len(text) > len(sent):
            chunks.append(self._chunk(b'{"content":%b}' % to_json(text[len(sent) :])))
        for at, call in enumerate(answer.tool_calls):
            chunks.append(self._chunk(to_json({"tool_calls": [{"index": at, **_call(call)}]})))
        chunks.append(self._chunk(b"{}", to_json(answer.finish_reason)))
        if self._include_usage:
            chunks.append(b'%b],"usage":%b}\n\n' % (self._head, to_json(_usage(answer.usage))))
        chunks.append(b"data: [DONE]\n\n")
        return b"".join(chunks)


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.call_id, "type": "function", "function": {"name": call.tool, "arguments": call.arguments}}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
