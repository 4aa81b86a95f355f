"""One HTTP connection: uvicorn's, with deadlines for whoever is slow and bounds for whoever sends too much."""

import asyncio
import json
import math
import os
from http import HTTPStatus
from typing import Any, Protocol, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.errors import TYPE_BASE
from app.server.listener import is_readable

HEAD_TIMEOUT_S = 10.0
"""For a request's line and headers to arrive, from the first byte or from the connection on."""
WRITE_TIMEOUT_S = 30.0
"""For a client that does not read what it asked for."""
FAREWELL_S = 1.0
"""At the end, for a request that may be on its way on a connection that is idle."""
LINGER_S = 1.0
"""After a refusal, for the client to read it."""
MAX_HEAD_BYTES = 16 * 1024
MAX_URL_BYTES = 8 * 1024
MAX_HEADERS = 100

_CODES = {
    HTTPStatus.BAD_REQUEST: "invalid-request",
    HTTPStatus.REQUEST_TIMEOUT: "request-timeout",
    HTTPStatus.REQUEST_URI_TOO_LONG: "url-too-long",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "headers-too-large",
}
_DETAILS = {
    HTTPStatus.BAD_REQUEST: "this is no request of HTTP/1.1",
    HTTPStatus.REQUEST_TIMEOUT: f"the head of a request may take {HEAD_TIMEOUT_S:g} s to arrive",
    HTTPStatus.REQUEST_URI_TOO_LONG: f"a URL may have {MAX_URL_BYTES:,} bytes",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: f"{MAX_HEADERS} headers are taken, {MAX_HEAD_BYTES:,} bytes in all",
}


class State(ServerState):
    """What all connections of a process share."""

    leaving = False
    """The process is to end: every response says `Connection: close`."""
    _dated: list[tuple[bytes, bytes]] | None = None
    _beginning = b""

    def beginning(self) -> bytes:
        """How every successful response begins: the status line, and the headers that uvicorn renews each second."""
        if self._dated is not self.default_headers:
            self._dated = self.default_headers
            self._beginning = STATUS_LINE[200] + b"".join([b"%b: %b\r\n" % header for header in self._dated])
        return self._beginning


class KnowsAnswers(Protocol):
    """An application that answers some requests without a task, when they have arrived whole."""

    known_path: bytes | None
    """The path whose POSTs it may know."""

    def answer_at_once(self, raw_headers: list[tuple[bytes, bytes]], body: bytes) -> bytes | None:
        """The response but for its status line and its date, or `None` where the request is to be served."""
        ...


class Connection(HttpToolsProtocol):
    """A connection that knows when it should have heard or sent something; `sweep()` ends it when it has not.

    One sweep a second over all connections instead of a timer for each request: nothing is scheduled and cancelled
    on the way of a request.
    """

    server_state: State
    # None before the first request; uvicorn's annotation leaves that out.
    cycle: RequestResponseCycle | None  # pyright: ignore[reportIncompatibleVariableOverride]
    _head_due = math.inf
    _write_due = math.inf
    _close_at = math.inf
    _idle_until = math.inf
    _head_bytes = 0
    """At least as many as the head that is arriving has."""
    _chunk_bytes = 0
    """Of what has just come, as many as may belong to the head that is arriving."""
    _refusal: HTTPStatus | None = None
    _is_refused = False
    _held: bytes | None = None
    """The body, as far as it is there, of a request that may be answered at once; its cycle has not begun."""

    def __init__(self, config: Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self._knows = cast("KnowsAnswers", config.app)
        self._known_path = getattr(config.app, "known_path", None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - as uvicorn types it
        """Begin; the first request is awaited from here on."""
        super().connection_made(transport)
        self._head_due = self.loop.time() + HEAD_TIMEOUT_S
        if self.server_state.leaving:
            self._close_at = self.loop.time() + FAREWELL_S

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        if self._is_refused:
            return
        self._idle_until = math.inf
        self._chunk_bytes = len(data)
        self._head_bytes += self._chunk_bytes
        if self._head_due is math.inf and (self.cycle is None or self.cycle.response_complete):
            # Maybe only an empty line, which begins no request and has just stopped the timer of the idle connection.
            self._head_due = self.loop.time() + HEAD_TIMEOUT_S
        super().data_received(data)
        if self._held is not None:
            # The rest of the body is still on its way.
            self._serve()
        if self._head_bytes > MAX_HEAD_BYTES and self._head_due is not math.inf and not self.transport.is_closing():
            # Still no end of the headers.
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A request begins; its head has its time from now."""
        super().on_message_begin()
        self._head_bytes = self._chunk_bytes
        self._head_due = self.loop.time() + HEAD_TIMEOUT_S

    def on_headers_complete(self) -> None:
        """The head is there: accept or refuse it."""
        self._head_due = math.inf
        if len(self.url) > MAX_URL_BYTES:
            self._refusal = HTTPStatus.REQUEST_URI_TOO_LONG
        elif len(self.headers) > MAX_HEADERS or (
            self._head_bytes > MAX_HEAD_BYTES and sum(map(_length, self.headers)) > MAX_HEAD_BYTES
        ):
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        if self._refusal is not None:
            # Ends the parsing; uvicorn then calls `send_400_response`.
            raise ValueError(self._refusal.phrase)
        if self.url == self._known_path and self._may_answer_at_once():
            self._held = b""
            return
        self._begin_cycle()

    def on_body(self, body: bytes) -> None:
        """A part of the body has come."""
        if self._held is None:
            super().on_body(body)
        else:
            self._held += body

    def on_message_complete(self) -> None:
        """The request is whole."""
        # Whatever follows in the same chunk is counted when more comes.
        self._chunk_bytes = 0
        if self._held is not None:
            answer = self._knows.answer_at_once(self.headers, self._held)
            if answer is not None:
                self._held = None
                self.transport.write(self.server_state.beginning() + answer)
                self.on_response_complete()
                return
            self._serve()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the shape of every other refusal."""
        self._refuse(self._refusal or HTTPStatus.BAD_REQUEST)

    def on_response_complete(self) -> None:
        """A response has been sent: go on with the next request, or wait for one."""
        # As uvicorn does it, but for its timer, which would be made and cancelled for every request.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle_until = self.loop.time() + self.timeout_keep_alive

    def _unsupported_upgrade_warning(self) -> None:
        """Serve the request as if it asked for no upgrade, which HTTP allows, and say nothing of it in the log."""

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        super().pause_writing()
        self._write_due = self.loop.time() + WRITE_TIMEOUT_S

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._write_due = math.inf

    def sweep(self, now: float) -> None:
        """Cut the connection where one of its deadlines has passed."""
        if now >= self._write_due:
            self.transport.abort()
        elif now >= self._head_due and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        elif now >= self._idle_until and not self.transport.is_closing() and not self._is_readable():
            self.transport.close()

    def shutdown(self) -> None:
        """Begin to end: the running request is the last one; without one, wait a moment for one that is on its way.

        A client cannot know that we are about to close: a request may have left it already, on a connection that is
        new or was idle. It is answered, with `Connection: close`.
        """
        if self.cycle is None or self.cycle.response_complete:
            self._close_at = self.loop.time() + FAREWELL_S
        else:
            self.cycle.keep_alive = False

    def close_if_idle(self, now: float) -> None:
        """Close the connection if the moment of `shutdown()` is over and nothing has come."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if now < self._close_at or not is_idle or self.transport.is_closing():
            return
        if not self._is_readable():
            self.transport.close()

    def _may_answer_at_once(self) -> bool:
        parser = self.parser
        return (
            parser is not None
            and (self.cycle is None or self.cycle.response_complete)
            and not self.expect_100_continue
            and not self.server_state.leaving
            and not self.flow.write_paused
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
        )

    def _is_readable(self) -> bool:
        fd: int = self.transport.get_extra_info("socket").fileno()
        return is_readable(fd)

    def _serve(self) -> None:
        """Serve the held request as every other."""
        body, self._held = self._held, None
        self._begin_cycle()
        if body:
            super().on_body(body)

    def _begin_cycle(self) -> None:
        super().on_headers_complete()
        if self.server_state.leaving and self.cycle is not None:
            self.cycle.keep_alive = False

    def _refuse(self, status: HTTPStatus) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            if self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                # An answer is under way on this connection; nothing may be written into it.
                self.transport.close()
                return
            # What cannot be read is this request's own body: whoever waits for it is told that the client has gone.
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
        request_id = os.urandom(16).hex()
        body = {
            "type": TYPE_BASE + _CODES[status],
            "title": status.phrase,
            "status": status.value,
            "detail": _DETAILS[status],
            "request_id": request_id,
        }
        content = json.dumps(body).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(content)}\r\nx-request-id: {request_id}\r\n"
            "x-content-type-options: nosniff\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
        )
        # A close with bytes unread would reset the connection, and the client might never see the answer.
        self._is_refused = True
        self._head_due = math.inf
        self.transport.write(head.encode() + content)
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


def _length(header: tuple[bytes, Any]) -> int:
    return len(header[0]) + len(header[1])
