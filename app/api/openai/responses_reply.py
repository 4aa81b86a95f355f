"""An answer as a response of OpenAI's Responses API: whole, or in its events."""

import time
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from app.api.cache_headers import cache_headers
from app.api.openai.chat_reply import said
from app.api.openai.responses_request import ResponsesBody
from app.core.run import Answer, RunEvent, Started, TextDelta, ToolCall, Usage
from app.errors import MnemosineError


class ResponseObject:
    """The response object of one request, as it is at each moment."""

    def __init__(self, body: ResponsesBody, conversation_id: str | None) -> None:
        self.created_at = int(time.time())
        self._conversation_id = conversation_id
        self._body = body

    def begun(self, run_id: str) -> dict[str, Any]:
        """Before the answer is there."""
        return self._object(run_id, "in_progress")

    def answered(self, answer: Answer) -> dict[str, Any]:
        """With the answer; `incomplete` where the provider cut it."""
        reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
        reason = reasons.get(answer.finish_reason)
        return self._object(
            answer.id,
            "incomplete" if reason else "completed",
            output=output_items(answer),
            incomplete_details={"reason": reason} if reason else None,
            usage=_usage(answer.usage),
        )

    def failed(self, run_id: str, error: MnemosineError) -> dict[str, Any]:
        """With what went wrong."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        return self._object(run_id, "failed", error={"code": code, "message": error.detail})

    def _object(
        self,
        run_id: str,
        status: str,
        *,
        output: list[dict[str, Any]] | None = None,
        error: dict[str, Any] | None = None,
        incomplete_details: dict[str, Any] | None = None,
        usage: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        body = self._body
        sent = body.model_dump(include={"text", "tools", "tool_choice"}, exclude_none=True)
        return {
            "id": response_id(run_id),
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": incomplete_details,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": output or [],
            "parallel_tool_calls": True,
            "previous_response_id": body.previous_response_id,
            "conversation": None if self._conversation_id is None else {"id": self._conversation_id},
            "reasoning": {"effort": None, "summary": None},
            "store": body.store is not False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}} | sent.get("text", {}),
            "tool_choice": sent.get("tool_choice", "auto"),
            "tools": sent.get("tools", []),
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": usage,
            "user": None,
            "metadata": body.metadata or {},
        }


def response_id(run_id: str) -> str:
    """The id of the response that a run gave."""
    return f"resp_{run_id}"


def output_items(answer: Answer) -> list[dict[str, Any]]:
    """What the agent said, and which tools of the client it calls."""
    text = said(answer)
    status = "completed" if answer.finish_reason in ("stop", "tool_calls") else "incomplete"
    items = [_message(answer.id, text, status)] if text or not answer.tool_calls else []
    return items + [_call(answer.id, at, call, "completed") for at, call in enumerate(answer.tool_calls)]


class ResponseEvents:
    """The wire of a streamed response. With `whole` the text is held back until it is known to be the answer."""

    def __init__(self, response: ResponseObject, *, whole: bool) -> None:
        self._response = response
        self._whole = whole
        self._run_id = ""
        self._next = 0
        self._message_begun = False
        self._sent: list[str] = []
        self._delta_head = b""

    def headers(self, started: Started) -> Mapping[str, str]:
        """How the cache took part."""
        return cache_headers(started.cache, age_s=started.age_s, ttl_s=started.ttl_s)

    def event(self, event: RunEvent) -> bytes:
        """The events that OpenAI's clients expect for one of ours."""
        match event:
            case TextDelta():
                return b"" if self._whole else self._say(event.text)
            case Started():
                self._run_id = event.id
                about = to_json({"item_id": f"msg_{event.id}", "output_index": 0, "content_index": 0, "logprobs": []})
                name = b"response.output_text.delta"
                self._delta_head = b'event: %b\ndata: {"type":"%b",%b,"delta":' % (name, name, about[1:-1])
                begun = self._response.begun(event.id)
                return self._event("response.created", response=begun) + self._event(
                    "response.in_progress", response=begun
                )
            case Answer():
                return self._end(event)
            case _:
                return b""

    def failed(self, error: MnemosineError) -> bytes:
        """`response.failed`, with what the client may know."""
        return self._event("response.failed", response=self._response.failed(self._run_id, error))

    def _say(self, text: str) -> bytes:
        begin = b"" if self._message_begun else self._begin_message()
        self._sent.append(text)
        number = self._next
        self._next = number + 1
        return b'%b%b%b,"sequence_number":%d}\n\n' % (begin, self._delta_head, to_json(text), number)

    def _begin_message(self) -> bytes:
        self._message_begun = True
        item = _message(self._run_id, None, "in_progress")
        part: dict[str, Any] = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
        return self._event("response.output_item.added", output_index=0, item=item) + self._event(
            "response.content_part.added", item_id=item["id"], output_index=0, content_index=0, part=part
        )

    def _end(self, answer: Answer) -> bytes:
        text, sent = said(answer), "".join(self._sent)
        events: list[bytes] = []
        if text.startswith(sent) and len(text) > len(sent):
            events.append(self._say(text[len(sent) :]))
        elif not self._message_begun and not answer.tool_calls:
            events.append(self._begin_message())
        response = self._response.answered(answer)
        for at, item in enumerate(response["output"]):
            if item["type"] == "message":
                place: dict[str, Any] = {"item_id": item["id"], "output_index": at, "content_index": 0}
                events.append(self._event("response.output_text.done", **place, text=text, logprobs=[]))
                events.append(self._event("response.content_part.done", **place, part=item["content"][0]))
            else:
                place = {"item_id": item["id"], "output_index": at}
                arguments = item["arguments"]
                begun = {**item, "arguments": "", "status": "in_progress"}
                events.append(self._event("response.output_item.added", output_index=at, item=begun))
                events.append(self._event("response.function_call_arguments.delta", **place, delta=arguments))
                events.append(
                    self._event(
                        "response.function_call_arguments.done", **place, name=item["name"], arguments=arguments
                    )
                )
            events.append(self._event("response.output_item.done", output_index=at, item=item))
        events.append(self._event(f"response.{response['status']}", response=response))
        return b"".join(events)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._next
        self._next = number + 1
        return b"event: %b\ndata: %b\n\n" % (
            kind.encode(),
            to_json({"type": kind, **fields, "sequence_number": number}),
        )


def _message(run_id: str, text: str | None, status: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if text is not None:
        content.append({"type": "output_text", "annotations": [], "logprobs": [], "text": text})
    return {"id": f"msg_{run_id}", "type": "message", "status": status, "role": "assistant", "content": content}


def _call(run_id: str, at: int, call: ToolCall, status: str) -> dict[str, Any]:
    return {
        "id": f"fc_{run_id}_{at}",
        "type": "function_call",
        "status": status,
        "call_id": call.call_id,
        "name": call.tool,
        "arguments": call.arguments,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
