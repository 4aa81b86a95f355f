"""An OpenAI-compatible provider that costs next to nothing, answers predictably, and fails on request.

    python -m benchmarks.fake_provider --latency-ms 200 --chunks 20     # prints {"base_url": ..., "pid": ...}

    async with FakeProvider(latency_s=0.2) as fake:                     # inside a test's event loop
        client = AsyncOpenAI(base_url=fake.base_url, api_key="any")

What it answers stands in `fake_answers.py`; how it fails, in `Fault`. It is used to measure servers, so it is a
bare protocol on the event loop, without a framework, a task or a copy more than needed.

Besides `POST /v1/chat/completions` it serves `GET /v1/models`, `GET /stats` (the counters) and `POST /control`
(set `fault`, `fault_sequence`, `latency_s`, `chunks`, `chunk_gap_s`, `stop_at` from another process).
"""

# pyright: reportPrivateUsage=false
# A server and its connections are one thing in two classes; what they share is nobody else's business.

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import httptools

from benchmarks.fake_answers import Answer, answer_to, last_user_text

Fault = Literal[
    "429",  # rate limited, with Retry-After
    "500",
    "503",
    "401",
    "bad-json",  # a 200 whose JSON is broken
    "empty",  # a 200 without a body
    "error-in-200",  # an error object where the answer should be
    "reset",  # the connection is reset before any answer
    "cut",  # the connection ends in the middle of the answer
    "hang",  # no answer, until the client leaves
    "drip",  # the answer, one byte every `drip_s` seconds
    "stream-no-finish",  # the stream ends in order, but without finish_reason and [DONE]
    "stream-cut",  # the connection ends in the middle of the stream
]
"""The menu. Chosen by `fault:NAME` in the last user message, else by `fault_sequence`, else by `fault`.

The two `stream-` faults leave requests without `"stream": true` alone.
"""

FAULTS: tuple[Fault, ...] = get_args(Fault)

Outcome = Literal["open", "answered", "left"]
"""Of a call: not finished yet; finished, if only by a fault; the client went away before that."""

_ERRORS: Mapping[str, tuple[str, str, str]] = {
    "400": ("Bad Request", "invalid_request_error", "This is not a chat completion request."),
    "401": ("Unauthorized", "invalid_request_error", "Incorrect API key provided."),
    "404": ("Not Found", "invalid_request_error", "The fake provider has no such route."),
    "429": ("Too Many Requests", "rate_limit_error", "Rate limit reached."),
    "500": ("Internal Server Error", "server_error", "The server had an error."),
    "503": ("Service Unavailable", "server_error", "The engine is overloaded."),
}
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_STREAM_END = b"0\r\n\r\n"
_CREATED = 1_750_000_000
_FAULT = re.compile(r"fault:([\w-]+)")
_CONTROLS = frozenset({"fault", "fault_sequence", "latency_s", "chunks", "chunk_gap_s", "stop_at"})

_quoted: Callable[[object], str] = json.JSONEncoder().encode  # three times as fast as json.dumps on a short string


@dataclass(slots=True)
class Call:
    """One request that arrived, and what became of it. Header names are lower case."""

    headers: dict[str, str]
    body: dict[str, Any]
    outcome: Outcome = "open"


@dataclass(frozen=True, slots=True)
class _Reply:
    """Bytes to send, `gap_s` seconds apart, and what follows the last of them."""

    pieces: list[bytes]
    gap_s: float = 0.0
    ending: Literal["keep-alive", "close", "reset", "hang"] = "keep-alive"


class FakeProvider:
    """A provider on a port of its own, open between `async with` or `start()` and `aclose()`.

    `latency_s` passes before the first byte. A stream has `chunks` pieces of content, `chunk_gap_s` apart; without
    a gap the whole stream leaves in one write. Every answer reports `prompt_tokens` and `completion_tokens`.
    All of these, and `fault`, may be changed at any time and hold for the requests that arrive from then on.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        latency_s: float = 0.0,
        chunks: int = 20,
        chunk_gap_s: float = 0.0,
        fault: Fault | None = None,
        drip_s: float = 2.0,
        retry_after_s: int = 1,
        prompt_tokens: int = 12,
        completion_tokens: int = 34,
        record: bool = True,
    ) -> None:
        self.host = host
        self.port = port
        self.latency_s = latency_s
        self.chunks = chunks
        self.chunk_gap_s = chunk_gap_s
        self.fault: Fault | None = fault
        self.fault_sequence: list[Fault | None] = []
        """Faults for the next calls, one each; `None` is a good answer."""
        self.drip_s = drip_s
        self.retry_after_s = retry_after_s
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens

        self.requests: list[Call] = []
        """Every call in order of arrival; stays empty with `record=False`."""
        self.calls = 0
        """Chat completion requests so far, faulty ones included."""
        self.in_flight = 0
        """Calls that are neither finished nor left."""
        self.open_streams = 0
        """Those of them that asked for a stream, counted from their arrival."""
        self.disconnects = 0
        """Calls whose client went away before the end."""

        self._record = record
        self._held: list[Callable[[], None]] | None = None
        self._stop_at: int | None = None
        self._stopped: list[Callable[[], None]] = []
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._watchers: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its `base_url`."""
        return f"http://{self.host}:{self.port}/v1"

    async def start(self) -> None:
        """Listen; `port` is the real one from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self, loop), self.host, self.port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Stop listening and drop all connections."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.drop()
        await self._server.wait_closed()
        await self.until(lambda: not self._connections)
        self._server = None

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._connections)

    def hold(self) -> None:
        """From now on let answers wait for `release()`."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """Send the answers that were held, and hold no more."""
        held, self._held = self._held or [], None
        for send in held:
            send()

    @property
    def stop_at(self) -> int | None:
        """How many pieces a stream with a gap between them sends before it waits until this is set again."""
        return self._stop_at

    @stop_at.setter
    def stop_at(self, pieces: int | None) -> None:
        self._stop_at = pieces
        stopped, self._stopped = self._stopped, []
        for send in stopped:
            send()

    async def until(self, claim: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
        """Wait for `claim()`, a statement about this object such as `fake.calls == 2`; raise `TimeoutError` else."""
        async with asyncio.timeout(timeout_s):
            while not claim():
                change = asyncio.get_running_loop().create_future()
                self._watchers.add(change)
                try:
                    await change
                finally:
                    self._watchers.discard(change)

    def stats(self) -> dict[str, int]:
        """Return the counters."""
        return {
            "calls": self.calls,
            "in_flight": self.in_flight,
            "open_streams": self.open_streams,
            "disconnects": self.disconnects,
        }

    # What a connection uses.

    def _opened(self, connection: "_Connection") -> None:
        self._connections.add(connection)

    def _closed(self, connection: "_Connection") -> None:
        self._connections.discard(connection)
        self._changed()

    def _began(self, call: Call) -> None:
        self.calls += 1
        self.in_flight += 1
        if call.body.get("stream"):
            self.open_streams += 1
        if self._record:
            self.requests.append(call)
        self._changed()

    def _ended(self, call: Call, outcome: Outcome) -> None:
        call.outcome = outcome
        self.in_flight -= 1
        if call.body.get("stream"):
            self.open_streams -= 1
        if outcome == "left":
            self.disconnects += 1
        self._changed()

    def _changed(self) -> None:
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _other_route(self, method: bytes, path: bytes, body: bytes) -> bytes:
        match method, path:
            case b"GET", b"/stats":
                return _ok(json.dumps(self.stats()))
            case b"GET", b"/v1/models":
                model = {"id": "fake", "object": "model", "created": _CREATED, "owned_by": "nobody"}
                return _ok(json.dumps({"object": "list", "data": [model]}))
            case b"POST", b"/control":
                changes: dict[str, Any] = json.loads(body)
                if unknown := changes.keys() - _CONTROLS:
                    return _error("400", message=f"no such control: {', '.join(sorted(unknown))}")
                for name, value in changes.items():
                    setattr(self, name, value)
                return _ok(json.dumps(self.stats()))
            case _:
                return _error("404")

    def _reply_to(self, body: dict[str, Any]) -> _Reply:
        prompt = last_user_text(body)
        fault = self._choose_fault(prompt)
        streamed = bool(body.get("stream"))
        match fault:
            case None:
                return self._good_reply(body, prompt)
            case "401" | "500" | "503":
                return _Reply([_error(fault)])
            case "429":
                return _Reply([_error(fault, headers=f"retry-after: {self.retry_after_s}\r\n")])
            case "bad-json":
                return _Reply(
                    [_stream('{"id": "chatcmpl-0", "choi') if streamed else _ok('{"id": "chatcmpl-0", "choi')]
                )
            case "empty":
                return _Reply([_STREAM_HEAD + _STREAM_END if streamed else _ok("")])
            case "error-in-200":
                error = _error_json("500")
                return _Reply([_stream(error) if streamed else _ok(error)])
            case "reset":
                return _Reply([], ending="reset")
            case "hang":
                return _Reply([], ending="hang")
            case "drip":
                head, separator, rest = b"".join(self._good_reply(body, prompt).pieces).partition(b"\r\n\r\n")
                return _Reply([head + separator, *(rest[at : at + 1] for at in range(len(rest)))], self.drip_s)
            case "stream-no-finish" | "stream-cut" | "cut" if streamed:
                return self._broken_stream(body, prompt, ends_in_order=fault == "stream-no-finish")
            case "cut":
                (whole,) = self._good_reply(body, prompt).pieces
                body_at = whole.index(b"\r\n\r\n") + 4
                return _Reply([whole[: (body_at + len(whole)) // 2]], ending="close")
            case "stream-no-finish" | "stream-cut":
                return self._good_reply(body, prompt)
            case _:
                return _Reply([_error("400", message=f"no fault {fault!r}; there are: {', '.join(FAULTS)}")])

    def _choose_fault(self, prompt: str) -> str | None:
        if "fault:" in prompt and (found := _FAULT.search(prompt)):
            return found[1]
        if self.fault_sequence:
            return self.fault_sequence.pop(0)
        return self.fault

    def _good_reply(self, body: dict[str, Any], prompt: str) -> _Reply:
        answer = answer_to(body, prompt)
        if not body.get("stream"):
            return _Reply([self._completion(body, answer)])
        begin, contents, end = self._stream_parts(body, answer)
        if self.chunk_gap_s <= 0:
            return _Reply([b"".join([begin, *contents, end])])
        contents[0] = begin + contents[0]
        contents[-1] += end
        return _Reply(contents, self.chunk_gap_s)

    def _broken_stream(self, body: dict[str, Any], prompt: str, *, ends_in_order: bool) -> _Reply:
        begin, contents, _ = self._stream_parts(body, answer_to(body, prompt))
        half = (len(contents) + 1) // 2
        contents[0] = begin + contents[0]
        if ends_in_order:
            return _Reply([*contents[:half], _STREAM_END], self.chunk_gap_s)
        contents[half - 1] = contents[half - 1][:-20]
        return _Reply(contents[:half], self.chunk_gap_s, ending="close")

    def _completion(self, body: dict[str, Any], answer: Answer) -> bytes:
        if answer.tool_calls:
            calls = json.dumps([_call_json(self.calls, at, answer) for at in range(len(answer.tool_calls))])
            message = f'{{"role":"assistant","content":null,"refusal":null,"tool_calls":{calls}}}'
        else:
            message = f'{{"role":"assistant","content":{_quoted(self._padded(answer.text))},"refusal":null}}'
        return _ok(
            f'{{"id":"chatcmpl-{self.calls}","object":"chat.completion","created":{_CREATED},'
            f'"model":{_quoted(body.get("model"))},"choices":[{{"index":0,"message":{message},"logprobs":null,'
            f'"finish_reason":"{_finish_reason(answer)}"}}],"usage":{self._usage()},"system_fingerprint":"fp_fake"}}'
        )

    def _stream_parts(self, body: dict[str, Any], answer: Answer) -> tuple[bytes, list[bytes], bytes]:
        """Return the bytes that open the stream, those of its pieces of content, and those that end it."""
        options: Mapping[str, Any] = body.get("stream_options") or {}
        with_usage = bool(options.get("include_usage"))
        head = (
            f'{{"id":"chatcmpl-{self.calls}","object":"chat.completion.chunk","created":{_CREATED},'
            f'"model":{_quoted(body.get("model"))},"system_fingerprint":"fp_fake",'
        )
        tail = ',"usage":null}' if with_usage else "}"

        def event(delta: str, finish_reason: str = "null") -> bytes:
            choice = f'"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish_reason}}}]'
            return _event(head + choice + tail)

        if answer.tool_calls:
            begin = event('{"role":"assistant","content":null}')
            contents = [event(delta) for delta in self._tool_call_deltas(answer)]
        else:
            begin = event('{"role":"assistant","content":"","refusal":null}')
            pieces = _split(self._padded(answer.text), self.chunks)
            contents = [event(f'{{"content":{_quoted(piece)}}}') for piece in pieces]
        end = event("{}", f'"{_finish_reason(answer)}"')
        if with_usage:
            end += _event(f'{head}"choices":[],"usage":{self._usage()}}}')
        return _STREAM_HEAD + begin, contents, end + _event("[DONE]") + _STREAM_END

    def _tool_call_deltas(self, answer: Answer) -> list[str]:
        deltas: list[str] = []
        for at, call in enumerate(answer.tool_calls):
            opening = _call_json(self.calls, at, answer)
            opening["function"] = {"name": call.name, "arguments": ""}
            deltas.append(json.dumps({"tool_calls": [{"index": at, **opening}]}))
            pieces = _split(call.arguments, min(self.chunks, len(call.arguments)))
            deltas += [json.dumps({"tool_calls": [{"index": at, "function": {"arguments": it}}]}) for it in pieces]
        return deltas

    def _padded(self, text: str) -> str:
        # A stream of n chunks needs n characters, and both forms say the same; JSON stays JSON.
        return text.ljust(self.chunks, " " if text.startswith("{") else ".")

    def _usage(self) -> str:
        total = self.prompt_tokens + self.completion_tokens
        return (
            f'{{"prompt_tokens":{self.prompt_tokens},"completion_tokens":{self.completion_tokens},'
            f'"total_tokens":{total}}}'
        )


class _Connection(asyncio.Protocol):
    """One client connection: reads a request, plays its reply, and begins again. No pipelining."""

    __slots__ = (
        "_body",
        "_call",
        "_fake",
        "_headers",
        "_keep_alive",
        "_loop",
        "_next",
        "_parser",
        "_path",
        "_paused",
        "_reply",
        "_timer",
        "_transport",
    )

    def __init__(self, fake: FakeProvider, loop: asyncio.AbstractEventLoop) -> None:
        self._fake = fake
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._call: Call | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._keep_alive = True

    def drop(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    # From the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._fake._opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._finish("left")
        self._fake._closed(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(_error("400"))
            self._transport.close()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._call and self._timer is None:
            self._send_next()

    # From the parser.

    def on_message_begin(self) -> None:
        self._path = self._body = b""
        self._headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()
        method = self._parser.get_method()
        if method != b"POST" or not self._path.endswith(b"/chat/completions"):
            self._transport.write(self._fake._other_route(method, self._path, self._body))
            return
        try:
            body = json.loads(self._body)
            if not isinstance(body, dict):
                raise TypeError(f"a request is a JSON object, got {type(body).__name__}")
            body = cast("dict[str, Any]", body)
            call = Call(
                {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._headers}, body
            )
            self._fake._began(call)
            self._call = call
            self._reply = self._fake._reply_to(body)
        except (ValueError, TypeError, AttributeError, KeyError):  # not JSON, or not of the right shape
            self._transport.write(_error("400"))
            self._finish("answered")
            return
        self._next = 0
        if self._fake.latency_s > 0:
            self._timer = self._loop.call_later(self._fake.latency_s, self._begin)
        else:
            self._begin()

    # The reply.

    def _begin(self) -> None:
        self._timer = None
        if self._fake._held is None:
            self._send_next()
        else:
            self._fake._held.append(self._send_next)

    def _send_next(self) -> None:
        self._timer = None
        if self._paused or self._call is None:  # the client reads too slowly, or has gone while its answer was held
            return
        reply = self._reply
        if self._next == self._fake._stop_at and len(reply.pieces) > 1:
            self._fake._stopped.append(self._send_next)
            return
        if self._next < len(reply.pieces):
            self._transport.write(reply.pieces[self._next])
            self._next += 1
        if self._next < len(reply.pieces):
            self._timer = self._loop.call_later(reply.gap_s, self._send_next)
        else:
            self._end(reply)

    def _end(self, reply: _Reply) -> None:
        if reply.ending == "hang":
            return
        self._finish("answered")
        if reply.ending == "reset":
            # Without lingering, closing sends RST instead of FIN.
            lingering: socket.socket = self._transport.get_extra_info("socket")
            lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        elif reply.ending == "close" or not self._keep_alive:
            self._transport.close()

    def _finish(self, outcome: Outcome) -> None:
        call, self._call = self._call, None
        if call:
            self._fake._ended(call, outcome)


def _ok(body: str) -> bytes:
    data = body.encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


def _error(status: str, *, headers: str = "", message: str | None = None) -> bytes:
    body = _error_json(status, message)
    return (
        f"HTTP/1.1 {status} {_ERRORS[status][0]}\r\ncontent-type: application/json\r\n{headers}"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


def _error_json(status: str, message: str | None = None) -> str:
    _, kind, default = _ERRORS[status]
    return json.dumps({"error": {"message": message or default, "type": kind, "param": None, "code": None}})


def _stream(only_event: str) -> bytes:
    return _STREAM_HEAD + _event(only_event) + _STREAM_END


def _event(data: str) -> bytes:
    """Return a server-sent event as one chunk of a chunked body."""
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def _split(text: str, count: int) -> list[str]:
    """Cut `text` into `count` pieces of about the same length."""
    size = len(text)
    return [text[at * size // count : (at + 1) * size // count] for at in range(count)]


def _call_json(call_number: int, at: int, answer: Answer) -> dict[str, Any]:
    call = answer.tool_calls[at]
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{call_number}_{at}", "type": "function", "function": function}


def _finish_reason(answer: Answer) -> str:
    return "tool_calls" if answer.tool_calls else "stop"


async def _serve(fake: FakeProvider) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with fake:
        print(json.dumps({"base_url": fake.base_url, "pid": os.getpid()}), flush=True)
        await stop.wait()


def main() -> None:
    """Serve until SIGINT or SIGTERM; the address is one line of JSON on standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fake_provider", description="A fake model provider.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="before the first byte of an answer")
    parser.add_argument("--chunks", type=int, default=20, help="pieces of content in a stream")
    parser.add_argument("--chunk-gap-ms", type=float, default=0.0, help="between two of them; 0 sends all at once")
    parser.add_argument("--fault", choices=FAULTS, help="let every call fail so")
    parser.add_argument("--drip-ms", type=float, default=2000.0, help="between two bytes of the fault `drip`")
    options = parser.parse_args()
    fake = FakeProvider(
        host=options.host,
        port=options.port,
        latency_s=options.latency_ms / 1000,
        chunks=options.chunks,
        chunk_gap_s=options.chunk_gap_ms / 1000,
        fault=options.fault,
        drip_s=options.drip_ms / 1000,
        record=False,
    )
    if sys.platform == "win32":
        asyncio.run(_serve(fake))
    else:
        import uvloop

        uvloop.run(_serve(fake))


if __name__ == "__main__":
    main()
