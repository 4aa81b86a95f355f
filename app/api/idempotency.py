"""`Idempotency-Key`: a route class whose POST routes answer a repeated request with what they answered first."""

import asyncio
import logging
import re
from collections.abc import Coroutine
from typing import Any

from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from app.api.json_route import JsonRoute
from app.api.visit import visit_of
from app.core.idempotency import Headers, Recording, request_key
from app.errors import InvalidRequest
from app.runtime import Runtime

_log = logging.getLogger(__name__)

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_REPLAYED = (b"idempotent-replayed", b"true")
# What is true of one response only.
_NOT_KEPT = (b"content-length", b"retry-after", b"set-cookie", b"age", b"x-ratelimit-")
_HEARTBEAT = b":\n\n"
# How our three streams say that they failed. A model cannot say it: its words are JSON, without line breaks.
_STREAM_FAILED = re.compile(rb'^(?:event: (?:error|response\.failed)\s*$|data: \{"error")', re.MULTILINE)
_STALL_S = 30.0


class IdempotentRoute(JsonRoute):
    """Gives a POST route `Idempotency-Key`; nothing in the route itself knows of it.

    A request with the header is run apart from its connection, so it goes on where its client leaves. Its bytes are
    recorded as they pass, and stored before the last of them leaves.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that matched."""
        request = Request(scope, receive)
        key = request.headers.get("idempotency-key")
        scheme, credential = get_authorization_scheme_param(request.headers.get("authorization"))
        # Without a credential the route refuses by itself.
        if key is None or request.method != "POST" or scheme.lower() != "bearer" or not credential:
            await super().handle(scope, receive, send)
            return
        if not _KEY.fullmatch(key):
            raise InvalidRequest("Idempotency-Key must be 1 to 255 visible ASCII characters, for example a UUID")
        runtime: Runtime = scope["app"].state.runtime
        caller = await runtime.callers.recognise(credential)
        visit = visit_of(scope)
        # A repeated answer passes none of the route's dependencies, which would say so.
        visit.story.caller_id = caller.id
        body = await request.body()
        answer_route = super().handle

        async def run(recording: Recording) -> tuple[Headers, bytes] | None:
            await answer_route(dict(scope), _receiving(body), _recording(recording))
            return _worth_keeping(recording)

        recording, joined = runtime.idempotency.answer(request_key(caller, self.path, key, body), run)
        waits = joined and not recording.is_over
        await _until_done_or_left(_pass_on(recording, send, joined=joined), receive)
        if waits or recording.replayed:
            # Somebody else's model took the time, not this server.
            visit.stages_ms.setdefault("model", visit.elapsed_ms)


def _receiving(body: bytes) -> Receive:
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            # The client of this run never leaves: there may be several, or none by now.
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _recording(recording: Recording) -> Send:
    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            recording.begin(message["status"], list(message["headers"]))
        elif message["type"] == "http.response.body":
            recording.add(message.get("body", b""), last=not message.get("more_body", False))

    return send


def _worth_keeping(recording: Recording) -> tuple[Headers, bytes] | None:
    if not 200 <= recording.status < 300:
        return None
    headers = [(name, value) for name, value in recording.headers if not name.lower().startswith(_NOT_KEPT)]
    pieces = recording.pieces
    if _is_stream(headers):
        if _STREAM_FAILED.search(recording.body):
            return None
        pieces = [piece for piece in pieces if piece != _HEARTBEAT]
    return headers, b"".join((*pieces, recording.tail))


def _is_stream(headers: Headers) -> bool:
    return dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")


async def _pass_on(recording: Recording, send: Send, *, joined: bool) -> None:
    await recording.head()
    headers = list(recording.headers)
    if (joined or recording.replayed) and 200 <= recording.status < 300:
        headers.append(_REPLAYED)
    if recording.replayed and not _is_stream(headers):
        headers.append((b"content-length", b"%d" % len(recording.body)))
    await send({"type": "http.response.start", "status": recording.status, "headers": headers})
    async for piece, more in recording.read():
        try:
            async with asyncio.timeout(_STALL_S):
                await send({"type": "http.response.body", "body": piece, "more_body": more})
        except TimeoutError:
            _log.warning("a client took nothing of its answer for %g s; it is cut", _STALL_S)
            return


async def _until_done_or_left(passing: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Pass on until all is said, or until nobody listens any more; the run goes on either way."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(passing), asyncio.create_task(left())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
