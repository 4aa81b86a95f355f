"""A streamed answer in Mnemosine's own events: `start`, `delta`, `tool_start`, `tool_end`, then `done` or `error`."""

from collections.abc import Callable, Mapping
from typing import assert_never

from pydantic_core import to_json

from app.api.cache_headers import cache_headers
from app.api.problems import problem_object
from app.core.run import Answer, RunEvent, Started, TextDelta, ToolFinished, ToolStarted
from app.errors import MnemosineError


class PromptEvents:
    """The wire of `POST /api/v1/agent/prompt` with `"stream": true`; `docs/reference/events.md` shows it."""

    def __init__(self, request_id: str, write_done: Callable[[Answer], bytes]) -> None:
        self._request_id = request_id
        self._write_done = write_done
        self._next = 0

    def headers(self, started: Started) -> Mapping[str, str]:
        """How the cache took part."""
        return cache_headers(started.cache, age_s=started.age_s, ttl_s=started.ttl_s)

    def event(self, event: RunEvent) -> bytes:
        """One event, numbered from 0."""
        match event:
            case TextDelta():
                return self._framed(b"delta", b'{"text":%b}' % to_json(event.text))
            case Started():
                return self._framed(
                    b"start",
                    to_json(
                        {
                            "id": event.id,
                            "agent": event.agent,
                            "model": event.model,
                            "conversation_id": event.conversation_id,
                            "cached": event.cache in ("HIT", "COALESCED"),
                        }
                    ),
                )
            case ToolStarted():
                return self._framed(b"tool_start", to_json({"id": event.call_id, "tool": event.tool}))
            case ToolFinished():
                return self._framed(
                    b"tool_end", to_json({"id": event.call_id, "tool": event.tool, "succeeded": event.succeeded})
                )
            case Answer():
                return self._framed(b"done", self._write_done(event))
            case _:
                assert_never(event)

    def failed(self, error: MnemosineError) -> bytes:
        """The problem object that the plain route would answer with."""
        return self._framed(b"error", to_json(problem_object(error, self._request_id)))

    def _framed(self, name: bytes, data: bytes) -> bytes:
        number = self._next
        self._next = number + 1
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (number, name, data)
