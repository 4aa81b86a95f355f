"""Load on an HTTP server: keep-alive connections that ask, check every answer, and ask again.

Apart from everything else so that it runs in a process of its own (`python -m app.load < load.json`) and imports next
to nothing: a request costs it 10-20 µs, a fraction of what any server pays for the answer. `mnemosine bench` and
`benchmarks/` use it. Closed loop: a connection sends its next request when it has its answer, so a server that stalls
is asked less often; `latency_ms` is what the callers that did ask had to wait.
"""

import asyncio
import contextlib
import json
import math
import re
import secrets
import ssl
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter, process_time
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import httptools

NONCE = "{nonce}"
"""Stands in a body for 16 characters that no other request has."""

Check = Literal["echo", "answer"]
"""What makes a 200 an answer: it repeats the nonce of its own prompt, or it is a complete answer at all."""

_NONCE_LENGTH = 16
_TEXT = re.compile(rb'"(?:text|content)": ?"((?:[^"\\]|\\.)+)"')
_EXAMPLES_KEPT = 5


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, from how many connections, and for how long: `requests` in all, or `seconds`.

    Of `seconds` the first `warmup_s` come on top and are not counted. Requests that are under way at the end may
    finish within `drain_s`: they count in the latencies and not in the rate.
    """

    url: str
    bodies: Sequence[str]
    """Sent in turn. Where a body holds `{nonce}`, each request gets its own, or with `equal` all get the same."""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    connections: int = 1
    requests: int | None = None
    seconds: float | None = None
    at_most: int | None = None
    """A bound on the requests of a load of `seconds`, which ends early when it is reached."""
    warmup_s: float = 0.0
    drain_s: float = 30.0
    timeout_s: float = 120.0
    """No load runs longer than this after its last request was due."""
    equal: bool = False
    streamed: bool = False
    stream_ends: Sequence[str] = ("event: done", "[DONE]")
    """A stream is complete where it holds one of these."""
    check: Check = "echo"

    def __post_init__(self) -> None:
        if (self.requests is None) == (self.seconds is None):
            raise ValueError("a load has either `requests` or `seconds`")
        if self.connections < 1:
            raise ValueError(f"connections must be >= 1, got {self.connections}")
        if not self.bodies:
            raise ValueError("a load needs at least one body")


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of a set of durations, in milliseconds; all zero where there was none."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a load met."""

    answered: int
    """Good answers inside the counted time."""
    completed: int
    """Good answers in all, warm-up and drain included: what the server's CPU time is divided by."""
    seconds: float
    """The counted time."""
    per_second: float
    latency_ms: Quantiles
    first_token_ms: Quantiles
    """Streams only: from the request's last byte to the first text of its answer."""
    errors: dict[str, int]
    """By kind: `status 503`, `wrong answer`, `disconnected`, `unfinished`, `cannot connect`."""
    examples: list[str]
    """The beginnings of the first few bad answers."""
    generator_cpu_s: float


def quantile(ordered: Sequence[float], q: float) -> float:
    """The smallest value with at least the share `q` of all values at or below it (nearest rank); 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def quantiles(durations_s: Sequence[float]) -> Quantiles:
    """Summarise durations given in seconds."""
    ordered = sorted(duration * 1000 for duration in durations_s)
    if not ordered:
        return Quantiles(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    return Quantiles(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=quantile(ordered, 0.5),
        p95=quantile(ordered, 0.95),
        p99=quantile(ordered, 0.99),
        max=ordered[-1],
    )


async def run_load(load: Load) -> Report:
    """Run `load` on this event loop; for figures, run it in a process of its own."""
    return await _Run(load).finish()


class _Run:
    """One load under way: the requests, the clock and the counts that all its connections share."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.started = 0.0
        self.stream_ends = [end.encode() for end in load.stream_ends]
        self._loop = asyncio.get_running_loop()
        self._requests = _requests(load)
        self._most = load.at_most if load.requests is None else load.requests
        self._run_id = secrets.token_hex(3)
        self._sent = 0
        self._over = asyncio.Event()
        self._all_closed = asyncio.Event()
        self._window = (0.0, math.inf)
        self._stopping = False
        self._connections: set[_Connection] = set()
        self._reconnecting: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._latencies: list[float] = []
        self._first_tokens: list[float] = []
        self._answered = 0
        self._completed = 0
        self._last_answer = 0.0
        self._errors: Counter[str] = Counter()
        self._examples: list[str] = []

    async def finish(self) -> Report:
        load = self.load
        cpu = process_time()
        connections = load.connections if self._most is None else min(load.connections, self._most)
        results = await asyncio.gather(*(self._connect() for _ in range(connections)), return_exceptions=True)
        if failures := [result for result in results if isinstance(result, BaseException)]:
            await self._close()
            raise ConnectionError(f"cannot connect to {load.url}: {failures[0]}") from failures[0]
        # perf_counter: the time of uvloop has whole milliseconds.
        self.started = perf_counter()
        bound_s = load.timeout_s
        if load.seconds is not None:
            begin = self.started + load.warmup_s
            self._window = (begin, begin + load.seconds)
            self._loop.call_later(load.warmup_s + load.seconds, self._stop)
            bound_s = load.warmup_s + load.seconds + load.drain_s
        for connection in list(self._connections):
            connection.ask()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(bound_s):
                await self._over.wait()
        if self._busy:
            self._errors["unfinished"] += self._busy
        await self._close()
        begin, end = self._window
        if load.requests is not None or self._sent == load.at_most:
            begin = self.started if load.requests is not None else begin
            end = min(end, self._last_answer)
        seconds = max(end - begin, 1e-9)
        return Report(
            answered=self._answered,
            completed=self._completed,
            seconds=seconds,
            per_second=self._answered / seconds,
            latency_ms=quantiles(self._latencies),
            first_token_ms=quantiles(self._first_tokens),
            errors=dict(self._errors),
            examples=self._examples,
            generator_cpu_s=process_time() - cpu,
        )

    # Asked by connections.

    def next_request(self) -> tuple[bytes, bytes] | None:
        """The bytes of the next request and its nonce, or `None` when there is no more to ask."""
        if not self._has_more():
            return None
        number = 0 if self.load.equal else self._sent
        before, after = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        self._busy += 1
        nonce = b"%s%010d" % (self._run_id.encode(), number)
        return (before + nonce + after if after is not None else before), nonce

    def answered(self, started: float, first_token: float, now: float) -> None:
        """Count a good answer."""
        self._busy -= 1
        self._completed += 1
        begin, end = self._window
        self._last_answer = now
        if begin <= now <= end:
            self._answered += 1
        if started >= begin:
            self._latencies.append(now - started)
            if first_token:
                self._first_tokens.append(first_token - started)

    def failed(self, kind: str, example: bytes = b"") -> None:
        """Count a request that got no good answer."""
        self._busy -= 1
        self._errors[kind] += 1
        if len(self._examples) < _EXAMPLES_KEPT:
            self._examples.append(f"{kind}: {example[:200].decode('utf-8', 'replace')}")

    def opened(self, connection: "_Connection") -> None:
        self._connections.add(connection)
        self._all_closed.clear()

    def idle(self) -> None:
        """A connection has nothing more to ask."""
        if not self._busy:
            self._over.set()

    def closed(self, connection: "_Connection") -> None:
        """Open another connection in the place of one that the server closed, while there is more to ask."""
        self._connections.discard(connection)
        if not self._connections:
            self._all_closed.set()
        if self._has_more() and self.started:
            task = self._loop.create_task(self._reconnect())
            self._reconnecting.add(task)
            task.add_done_callback(self._reconnecting.discard)
        else:
            self.idle()

    def _has_more(self) -> bool:
        return not self._stopping and (self._most is None or self._sent < self._most)

    async def _reconnect(self) -> None:
        while self._has_more():
            try:
                connection = await self._connect()
            except OSError as error:
                # A request that could not even be sent is one that failed.
                self._sent += 1
                self._busy += 1
                self.failed("cannot connect", str(error).encode())
                await asyncio.sleep(0.05)
            else:
                connection.ask()
                return
        self.idle()

    async def _connect(self) -> "_Connection":
        parts = urlsplit(self.load.url)
        context = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if context else 80)
        _, connection = await self._loop.create_connection(
            lambda: _Connection(self), parts.hostname or "", port, ssl=context
        )
        return connection

    def _stop(self) -> None:
        self._stopping = True
        self.idle()

    async def _close(self) -> None:
        self._stopping = True
        for task in self._reconnecting:
            task.cancel()
        await asyncio.gather(*self._reconnecting, return_exceptions=True)
        for connection in list(self._connections):
            connection.drop()
        if self._connections:
            await self._all_closed.wait()


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    __slots__ = (
        "_asking",
        "_body",
        "_check",
        "_dropped",
        "_first_token",
        "_nonce",
        "_parser",
        "_run",
        "_started",
        "_stream_ends",
        "_streamed",
        "_transport",
    )

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._streamed = run.load.streamed
        self._stream_ends = run.stream_ends
        self._check = run.load.check
        self._transport: asyncio.Transport
        self._asking = False
        self._dropped = False
        self._body = b""

    def ask(self) -> None:
        """Send the next request, if there is one."""
        request = self._run.next_request()
        if request is None:
            self._run.idle()
            return
        data, self._nonce = request
        self._asking = True
        self._first_token = 0.0
        self._body = b""
        self._started = perf_counter()
        self._transport.write(data)

    def drop(self) -> None:
        """Close for good; a request that is under way is not counted any more."""
        self._dropped = True
        self._transport.abort()

    # From the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpResponseParser(self)
        self._run.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._asking:
                self._asking = False
                self._run.failed("not HTTP", data)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asking and not self._dropped:
            self._asking = False
            self._run.failed("disconnected", self._body)
        self._run.closed(self)

    # From the parser.

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body
        if self._streamed and not self._first_token and _TEXT.search(self._body):
            self._first_token = perf_counter()

    def on_message_complete(self) -> None:
        now = perf_counter()
        if not self._asking:  # the server speaks unasked, say a 408 before it closes
            self._transport.abort()
            return
        self._asking = False
        status = self._parser.get_status_code()
        if status != 200:
            self._run.failed(f"status {status}", self._body)
        elif not self._is_good(self._body):
            self._run.failed("wrong answer", self._body)
        else:
            self._run.answered(self._started, self._first_token, now)
        if self._parser.should_keep_alive():
            self.ask()
        else:
            self._transport.close()

    def _is_good(self, body: bytes) -> bool:
        if not self._streamed:
            return self._nonce in body if self._check == "echo" else body.startswith(b"{")
        if not any(end in body for end in self._stream_ends):
            return False
        return self._check == "answer" or self._nonce in b"".join(_TEXT.findall(body))


def _requests(load: Load) -> list[tuple[bytes, bytes | None]]:
    """Each body as the bytes before and after its nonce, HTTP head included; after is `None` where it has none."""
    parts = urlsplit(load.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"host": parts.netloc.rpartition("@")[2], "content-type": "application/json", **load.headers}
    made: list[tuple[bytes, bytes | None]] = []
    for body in load.bodies:
        before, found, after = body.partition(NONCE)
        length = len(before.encode()) + len(after.encode()) + (_NONCE_LENGTH if found else 0)
        lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join([*lines, f"content-length: {length}", "", ""])
        made.append((head.encode() + before.encode(), after.encode() if found else None))
    return made


def main() -> None:
    """Read a load as JSON from standard input, run it, print its report as JSON."""
    given: dict[str, Any] = json.load(sys.stdin)
    load = Load(**given)
    try:
        import uvloop
    except ImportError:
        report = asyncio.run(run_load(load))
    else:
        report = uvloop.run(run_load(load))
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
