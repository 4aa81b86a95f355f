"""A streamed answer as server-sent events: when it begins, what keeps it alive, and how it ends."""

import asyncio
import logging
from asyncio import Lock
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import Literal, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.attention import CLIENT_LEFT
from app.api.problems import internal_error, log_provider_failure
from app.api.visit import visit_of
from app.core.open_streams import OpenStreams
from app.core.run import Answer, RunEvent, Started, TextDelta
from app.errors import MnemosineError, Unavailable

_log = logging.getLogger(__name__)

PIECE_BYTES = 64 * 1024
"""At most so much leaves in one write, so that a slow reader holds no more than this beside the socket's own buffer."""

_Ending = Literal["left", "stalled", "draining"]


_PROMPTLY_S = 0.1


class Wire(Protocol):
    """How one wire format says what happens in a run. One object serves one stream."""

    def headers(self, started: Started) -> Mapping[str, str]:
        """Further headers of the response."""
        ...

    def event(self, event: RunEvent) -> bytes:
        """`event` as it leaves, framing included; empty where this wire does not mention it."""
        ...

    def failed(self, error: MnemosineError) -> bytes:
        """The last words of a stream that fails after it began."""
        ...


class EventStream(Response):
    """The response that passes on what a run says.

    The response begins with the first thing that the run says, or after `patience_s`: a failure before that is an
    ordinary response with its own status, a later one is the wire's own error event. A client that goes away, or that
    takes nothing for `stall_s`, ends its part of the run; one that falls `backlog_bytes` behind gets an error. Silence
    is filled with a comment every `heartbeat_s`.
    """

    def __init__(
        self,
        run: AbstractAsyncContextManager[AsyncIterator[RunEvent]],
        wire: Wire,
        streams: OpenStreams,
        *,
        headers: Mapping[str, str] | None = None,
        patience_s: float = 5.0,
        heartbeat_s: float = 15.0,
        stall_s: float = 30.0,
        backlog_bytes: int = 256 * 1024,
    ) -> None:
        super().__init__(None, headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]  # of the empty body that a response has before it is sent
        self._run = run
        self._wire = wire
        self._streams = streams
        self._patience_s = patience_s
        self._heartbeat_s = heartbeat_s
        self._stall_s = stall_s
        self._backlog_bytes = backlog_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the run, the client or the server ends it. Raises what the run raises before it begins."""
        if self._streams.is_draining:
            raise _going()
        way_out = _WayOut(self, send)
        task = asyncio.current_task()
        assert task is not None
        endings: list[_Ending] = []

        def end(why: _Ending) -> None:
            if not endings:
                endings.append(why)
                task.cancel()

        watcher = asyncio.create_task(self._watch(way_out, receive, end), name="stream-watch")
        visit = visit_of(scope)
        failure: MnemosineError | None = None
        try:
            with self._streams.held(lambda: end("draining")):
                await self._pass_on(way_out, visit.stages_ms)
        except asyncio.CancelledError:
            if not endings or task.uncancel() > 0:
                raise
            failure = _going() if endings == ["draining"] else None
        except MnemosineError as error:
            if not way_out.begun:
                raise
            log_provider_failure(error)
            failure = error
        except Exception as error:
            if not way_out.begun:
                raise
            _log.exception("a stream failed", exc_info=error)
            failure = internal_error()
        finally:
            watcher.cancel()
            if way_out.begun:
                # How long the model took is not known of a run that did not end; it is not the server's own time.
                visit.stages_ms.setdefault("model", visit.elapsed_ms)
        if failure is not None:
            if not way_out.begun:
                raise failure
            await way_out.finish(self._wire.failed(failure))
        elif endings == ["stalled"]:
            _log.warning("a client took nothing of its stream for %g s; it is cut", self._stall_s)
        elif endings == ["left"] and not way_out.begun:
            await Response(status_code=CLIENT_LEFT)(scope, receive, send)

    async def _pass_on(self, way_out: "_WayOut", stages_ms: dict[str, float]) -> None:
        wire = self._wire
        async with self._run as events:
            wait_s = 0.0
            async for event in events:
                match event:
                    case Started():
                        way_out.head = wire.headers(event)
                        way_out.held = wire.event(event)
                        continue
                    case TextDelta():
                        # What is there at once comes as one: so much gathered while the last piece was being read.
                        if wait_s > _PROMPTLY_S and len(event.text) > self._backlog_bytes:
                            raise Unavailable("the answer came faster than it was read; ask for it without streaming")
                    case Answer():
                        if event.cache != "HIT":
                            stages_ms["model"] = event.model_s * 1000
                        await way_out.finish(wire.event(event))
                        return
                    case _:
                        pass
                data = wire.event(event)
                if data:
                    wait_s = await way_out.write(data)

    async def _watch(self, way_out: "_WayOut", receive: Receive, end: "_End") -> None:
        """Wait for the client to leave; meanwhile keep the connection alive, and see that it is read."""
        wait_s = self._patience_s
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    message = await receive()
            except TimeoutError:
                now = monotonic()
                if way_out.writing_since is not None:
                    stalled_s = now - way_out.writing_since
                    if stalled_s >= self._stall_s:
                        end("stalled")
                        return
                    wait_s = self._stall_s - stalled_s
                    continue
                silent_s = now - way_out.wrote_at
                if not way_out.begun or silent_s >= self._heartbeat_s:
                    await way_out.write(b":\n\n")
                    silent_s = 0.0
                wait_s = min(self._heartbeat_s - silent_s, self._stall_s)
            else:
                if message["type"] == "http.disconnect":
                    end("left")
                    return


class _End(Protocol):
    def __call__(self, why: _Ending, /) -> None: ...


class _WayOut:
    """Where the bytes leave: the head goes before the first of them, and only one writes at a time."""

    def __init__(self, response: Response, send: Send) -> None:
        self.head: Mapping[str, str] = {}
        self.held = b""
        """What was said before the response began, and leaves with it."""
        self.begun = False
        self.wrote_at = monotonic()
        self.writing_since: float | None = None
        self._response = response
        self._send = send
        self._turn = Lock()

    async def write(self, data: bytes) -> float:
        """Send `data`, beginning the response where it has not begun; gives the seconds that the reader took."""
        async with self._turn:
            return await self._write(data, more=True)

    async def finish(self, data: bytes) -> None:
        """Send the last of it."""
        async with self._turn:
            await self._write(data, more=False)

    async def _write(self, data: bytes, *, more: bool) -> float:
        began = self.writing_since = monotonic()
        try:
            if not self.begun:
                self.begun = True
                headers = self._response.headers
                headers.update(self.head)
                headers["cache-control"] = "no-cache"
                headers["x-accel-buffering"] = "no"
                start = {"type": "http.response.start", "status": 200, "headers": self._response.raw_headers}
                await self._send(start)
            if self.held:
                data, self.held = self.held + data, b""
            while len(data) > PIECE_BYTES:
                await self._send({"type": "http.response.body", "body": data[:PIECE_BYTES], "more_body": True})
                data = data[PIECE_BYTES:]
                self.writing_since = monotonic()
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
        finally:
            self.writing_since = None
            self.wrote_at = monotonic()
        return self.wrote_at - began


def _going() -> MnemosineError:
    return Unavailable("the server is shutting down; ask again", retry_after_s=1)
