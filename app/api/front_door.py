"""The outermost room: every request enters and leaves here. Pure ASGI, one class, nothing of one request kept."""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Generator
from contextlib import contextmanager, suppress
from time import perf_counter
from types import coroutine
from typing import TYPE_CHECKING, Any, cast

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import tracing
from app.api.admission import Admission
from app.api.header_lines import headers_in
from app.api.known_questions import PATH, ROUTE, KnownQuestions
from app.api.limits import limit_lines
from app.api.problems import internal_error, problem
from app.api.visit import Visit, begin_visit, open_visit
from app.core.metrics import Metrics
from app.core.story import Story, current
from app.errors import InvalidRequest, MnemosineError, PayloadTooLarge, Unavailable, UnsupportedMedia
from app.logs import request_id

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = logging.getLogger(__name__)
_access = logging.getLogger("app.access")

_Headers = list[tuple[bytes, bytes]]

SECURITY_HEADERS: _Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b""),
]
_API_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'")
_NO_STORE = (b"cache-control", b"no-store")

_ON_EVERY_API_ANSWER: _Headers = [*SECURITY_HEADERS, _NO_STORE, _API_POLICY]

_LINES_ON_EVERY_API_ANSWER = b"".join([b"%b: %b\r\n" % header for header in _ON_EVERY_API_ANSWER])

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


_BODY_STALL_S = 10.0
"""Between two parts of a body."""
_DISCARD_S = 1.0
_DISCARDED_BYTES = 256 * 1024


class FrontDoor:
    """The whole application as uvicorn sees it: `api` with a request id, a clock, bounds and a last resort.

    Refuses bodies over `max_body_bytes` while they arrive, compressed bodies, and bodies that take longer than
    `body_timeout_s` to arrive. What nobody caught becomes a 500 in the one shape. Every request
    is counted in `metrics`.

    Whoever serves it sets `draining` when the worker is to end, and `last_call` when the time that it gives to running
    requests is nearly over; what runs even then is cancelled, and answered with a 503.
    """

    def __init__(
        self,
        api: "FastAPI",
        *,
        max_body_bytes: int,
        max_in_flight: int = 1000,
        body_timeout_s: float = 30.0,
        known: KnownQuestions | None = None,
    ) -> None:
        self.api = api
        self._known = known
        api.state.known_questions = known
        self.metrics = Metrics()
        self.admission = Admission(api, max_in_flight=max_in_flight)
        self._inner: ASGIApp = self.admission
        self.draining = asyncio.Event()
        self.last_call = asyncio.Event()
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s

    @property
    def is_loaded(self) -> bool | None:
        """Whether prompts can be answered as far as this worker is concerned; `None` while it still loads."""
        runtime = getattr(self.api.state, "runtime", None)
        if runtime is None or not runtime.agent_room.done():
            return None
        return not runtime.agent_room.cancelled() and runtime.agent_room.exception() is None

    @property
    def known_path(self) -> bytes | None:
        """The path whose POSTs may be answered by `answer_at_once`."""
        return None if self._known is None else PATH.encode()

    def answer_at_once(self, raw_headers: _Headers, body: bytes) -> bytes | None:
        """Answer a POST to `known_path` that has arrived whole, without a task: all of the response after its `date`.

        `None`, and nothing done, where the request has to be served as every other.
        """
        known = self._known
        if known is None or tracing.is_on() or self.draining.is_set():
            return None
        headers = dict(raw_headers)
        if not body or not known.may_be_known_by(headers):
            return None
        request = known.digest(headers, body)
        if request not in known:
            return None
        visit = begin_visit(headers.get(b"x-request-id"))
        answer = known.answer_at_once(self.api.state.runtime, request, headers, visit)
        if answer is None:
            return None
        assert visit.hit is not None
        self.metrics.record_hit(ROUTE, perf_counter() - visit.started, visit.request_id, visit.started, visit.hit)
        if _access.isEnabledFor(logging.INFO):
            with _as_request(visit.request_id):
                _access.info("POST %s 200 %.1f ms", PATH, visit.elapsed_ms)
        return b"%b%b%b\r\n%b" % (answer.lines, _lines_of(visit), _LINES_ON_EVERY_API_ANSWER, answer.body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event, as ASGI asks."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        visit = open_visit(scope, headers.get(b"x-request-id"))
        body = _Body(receive, headers, max_bytes=self._max_body_bytes, timeout_s=self._body_timeout_s)
        reply = _Reply(visit, body, send)
        if not tracing.is_on():
            await self._serve(scope, receive, body, reply, visit, headers)
            return
        with tracing.request_span(scope["method"], scope["path"], scope["headers"]) as span:
            span.set_attribute("mnemosine.request_id", visit.request_id)
            await self._serve(scope, receive, body, reply, visit, headers)
            tracing.end_request_span(span, visit.route or _route_of(scope), reply.status)

    async def _serve(
        self,
        scope: Scope,
        receive: Receive,
        body: "_Body",
        reply: "_Reply",
        visit: Visit,
        headers: dict[bytes, bytes],
    ) -> None:
        token = request_id.set(visit.request_id)
        story = current.set(visit.story)
        self.metrics.in_flight += 1
        try:
            _check_url(scope)
            body.check_headers()
            if not await self._answer_known(scope, headers, visit, body, reply):
                await self._inner(scope, body.receive, reply.send)
        except MnemosineError as error:
            await reply.last_resort(problem(scope, error), scope, receive)
        except asyncio.CancelledError:
            if not self.draining.is_set():
                raise
            # The task ends here in any case; a client that is still waiting gets an answer instead of a cut connection.
            going = Unavailable("the server is going down; ask again", retry_after_s=1)
            await reply.last_resort(problem(scope, going), scope, receive)
        except Exception:
            if not reply.status:
                _log.exception("%s %s failed outside of every handler", scope["method"], scope["path"])
            # Where a response was sent, the handler that sent it has logged the error too.
            await reply.last_resort(problem(scope, internal_error()), scope, receive)
        finally:
            current.reset(story)
            self.metrics.in_flight -= 1
            self._count(visit.route or _route_of(scope), visit, reply.status)
            if _access.isEnabledFor(logging.INFO):
                _access.info("%s %s %s %.1f ms", scope["method"], scope["path"], reply.status or "-", visit.elapsed_ms)
            request_id.reset(token)

    async def _answer_known(
        self, scope: Scope, headers: dict[bytes, bytes], visit: Visit, body: "_Body", reply: "_Reply"
    ) -> bool:
        """Answer a question that was asked before in the same bytes; `False` where the long way has to be taken."""
        known = self._known
        if known is None or not known.may_be_known(scope, headers) or (whole := await body.whole()) is None:
            return False
        visit.request_digest = request = known.digest(headers, whole)
        if request not in known:
            return False
        visit.route = ROUTE
        answer = await known.answer(self.api.state.runtime, request, headers, visit)
        if answer is None:
            visit.route = None
            return False
        await reply.send_whole(headers_in(answer.lines), answer.body)
        return True

    def _count(self, name: str, visit: Visit, status: int) -> None:
        elapsed_s = perf_counter() - visit.started
        model_ms = visit.stages_ms.get("model")
        # A failure may have come before, in or after the model; nobody knows how long that took.
        model_s = None if model_ms is None and status >= 500 else (model_ms or 0.0) / 1000
        story = visit.hit or visit.story
        # What nobody signed in for and what went well is not worth a place: health checks, pages.
        if isinstance(story, Story) and story.caller_id is None and 0 < status < 500:
            story = None
        self.metrics.record_request(name, status, elapsed_s, model_s, visit.request_id, visit.started, story)


def _check_url(scope: Scope) -> None:
    # No name of ours has it, and PostgreSQL does not take it even in a question.
    if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
        raise InvalidRequest("a URL must not contain the NUL character")


def _route_of(scope: Scope) -> str:
    # By the template of the route: paths and methods that a client invents must not become series.
    route = scope.get("route")
    method = scope["method"] if scope["method"] in _METHODS else "OTHER"
    return f"{method} {route.path}" if route is not None else "unmatched"


def _lines_of(visit: Visit) -> bytes:
    """What the response to a known question says of this visit."""
    limits = b"" if visit.allowance is None else limit_lines(visit.allowance)
    name = visit.request_id.encode("ascii")
    return b"%bx-request-id: %b\r\nserver-timing: total;dur=%.2f\r\n" % (limits, name, visit.elapsed_ms)


@contextmanager
def _as_request(name: str) -> Generator[None]:
    token = request_id.set(name)
    try:
        yield
    finally:
        request_id.reset(token)


class _Reply:
    """The way out: adds the headers that every response carries, and knows whether one has begun."""

    def __init__(self, visit: Visit, body: "_Body", send: Send) -> None:
        self.status = 0
        self._visit = visit
        self._body = body
        self._is_last = False
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers: _Headers = list(message.get("headers", ()))
            names = {name for name, _ in headers}
            headers += SECURITY_HEADERS
            if b"cache-control" not in names:
                headers.append(_NO_STORE)
            if b"content-security-policy" not in names:
                headers.append(_API_POLICY)
            if self._visit.allowance is not None:
                headers += headers_in(limit_lines(self._visit.allowance))
            headers.append((b"x-request-id", self._visit.request_id.encode("ascii")))
            headers.append((b"server-timing", self._visit.server_timing().encode("ascii")))
            # What is left of the body is not waited for: this is the last answer on the connection.
            self._is_last = not self._body.is_complete and not await self._body.settle()
            if self._is_last:
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        elif self._is_last and not message.get("more_body", False):
            # A close with bytes unread would reset the connection, and the client might never see the answer.
            await self._send({**message, "more_body": True})
            await self._body.discard()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def send_whole(self, headers: _Headers, body: bytes) -> None:
        """Send a successful response that is complete."""
        self.status = 200
        headers += headers_in(_lines_of(self._visit))
        headers += _ON_EVERY_API_ANSWER
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def last_resort(self, response: Response, scope: Scope, receive: Receive) -> None:
        """Send `response` unless one has begun; then the connection is cut, which the client can tell."""
        if not self.status:
            await response(scope, receive, self.send)


class _Body:
    """The way in: the body counted while it arrives, and given a time to arrive in."""

    def __init__(self, receive: Receive, headers: dict[bytes, bytes], *, max_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._headers = headers
        self._left = max_bytes
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        self._read_ahead: Message | None = None
        self.is_complete = (
            headers.get(b"content-length") == b"0"
            if b"content-length" in headers
            else b"transfer-encoding" not in headers
        )

    def check_headers(self) -> None:
        """Refuse what need not arrive to be refused."""
        if self._headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedMedia("compressed requests are not accepted; send the body as it is")
        length = self._headers.get(b"content-length")
        if length is not None and (not length.isdigit() or int(length) > self._max_bytes):
            self._left = 0
            raise PayloadTooLarge(f"the body may have at most {self._max_bytes} bytes")

    async def whole(self) -> bytes | None:
        """The whole body, or `None` where there is none. It is there for `receive` all the same."""
        pieces: list[bytes] = []
        while not self.is_complete:
            message = await self.receive()
            if message["type"] != "http.request":
                self._read_ahead = message
                return None
            pieces.append(message.get("body", b""))
        body = b"".join(pieces)
        self._read_ahead = {"type": "http.request", "body": body, "more_body": False}
        return body or None

    async def receive(self) -> Message:
        """The next part. Raises `InvalidRequest` where it is too slow, `PayloadTooLarge` where it is too much."""
        if self._read_ahead is not None:
            message, self._read_ahead = self._read_ahead, None
            return message
        if self.is_complete:
            return await self._receive()
        receiving = cast("Coroutine[Any, Any, Message]", self._receive())
        try:
            # Nearly always the body is there already, and a timer would cost more than all else that is done here.
            waits_for = receiving.send(None)
        except StopIteration as there:
            message: Message = there.value
        else:
            message = await self._in_time(_resumed(receiving, waits_for))
        self._take(message)
        if self._left < 0:
            raise PayloadTooLarge(f"the body may have at most {self._max_bytes} bytes")
        return message

    async def _in_time(self, receiving: Awaitable[Message]) -> Message:
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self._timeout_s
        try:
            async with asyncio.timeout_at(min(self._deadline, now + _BODY_STALL_S)):
                return await receiving
        except TimeoutError as error:
            limits = f"{_BODY_STALL_S:g} s without a byte, {self._timeout_s:g} s in all"
            raise InvalidRequest(f"the body came too slowly; the limits are {limits}") from error

    async def settle(self) -> bool:
        """Take what has arrived already; whether that was all."""
        if b"expect" in self._headers:  # asking for more would invite the client to send it
            return False
        while not self.is_complete and self._left > 0:
            try:
                async with asyncio.timeout(0):
                    self._take(await self._receive())
            except TimeoutError:
                return False
        return self.is_complete

    async def discard(self) -> None:
        """Read on for a moment, so that a client that sends before it reads comes to read; never much."""
        left = _DISCARDED_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_S):
                while not self.is_complete and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._take(message)

    def _take(self, message: Message) -> None:
        self._left -= len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)


@coroutine
def _resumed(begun: Coroutine[Any, Any, Message], waits_for: Any) -> Generator[Any, Any, Message]:
    """The rest of a coroutine that was run until it `waits_for` something."""
    while True:
        try:
            try:
                sent = yield waits_for
            except BaseException as error:
                waits_for = begun.throw(error)
            else:
                waits_for = begun.send(sent)
        except StopIteration as done:
            return done.value
