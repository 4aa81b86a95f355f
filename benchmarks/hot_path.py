"""How much is done for one request, counted instead of timed: `python -m benchmarks.hot_path`.

Counts calls of functions (Python's and C's) and executed bytecode instructions from the bytes of a request on a
connection of our server to the last byte of its answer: for a cached hit, an uncached prompt of the direct tier, and a
stream of 20 chunks. The provider is another process. Counts are the same on a busy machine as on an idle one, so a
test may hold them to a bound (`tests/benchmarks/test_hot_path.py`); of several requests the least is told, since
background work of the same event loop may fall into one. `--layer` adds a useless middleware, to show that it would be
seen; `--where` says who calls.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from starlette.middleware.base import BaseHTTPMiddleware

from app.server.connection import Connection
from app.server.server import Options, Server
from benchmarks.running import fake_provider
from benchmarks.visitor import opened

Action = Callable[[], Awaitable[None]]
KINDS = ("hit", "prompt", "stream")
_HOT = 8
_WARM_UP = 40


class Useless(BaseHTTPMiddleware):
    """A layer as tutorials add them; it does nothing."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


class Socket(asyncio.Transport):
    """Where a connection writes to: kept in memory."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 8000)})
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Line(Connection):
    """One connection of our server, on which `ask` sends the bytes of a request and waits for the whole answer."""

    def __init__(self, application: Any, token: str) -> None:
        server = Server(application, Options())
        server.config.load()
        super().__init__(server.config, server.server_state, {})
        self._token = token
        self._socket = Socket()
        self._complete = asyncio.Event()
        self.connection_made(self._socket)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._complete.set()

    def request(self, body: dict[str, Any]) -> bytes:
        content = json.dumps(body).encode()
        head = (
            f"POST /api/v1/agent/prompt HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {self._token}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    async def ask(self, request: bytes) -> None:
        self._socket.written.clear()
        self._complete.clear()
        self.data_received(request)
        if not self._complete.is_set():
            await self._complete.wait()

    def check(self, *, known: bool) -> None:
        """Whether the last answer was what it should be."""
        answer = b"".join(self._socket.written)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert (b"x-cache: HIT" if known else b"x-cache: MISS") in answer, answer


def request_of(kind: str, number: int) -> dict[str, Any]:
    # Several, since the cache follows a sample of its keys more closely; the others are the rule.
    message = f"What is asked again and again, {number % _HOT}?" if kind == "hit" else f"nonce:question-{number:06}"
    return {"message": message} | ({"stream": True} if kind == "stream" else {})


async def calls_of(action: Action, where: Counter[str] | None = None) -> int:
    """How many functions `action` calls."""
    count = 0

    def tell(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1
            if where is not None:
                code = frame.f_code
                where[argument.__qualname__ if event == "c_call" else f"{code.co_filename}:{code.co_qualname}"] += 1

    sys.setprofile(tell)
    try:
        await action()
    finally:
        sys.setprofile(None)
    return count


async def instructions_of(action: Action) -> int:
    """How many bytecode instructions are executed for `action`."""
    count = 0

    def tell(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            count += 1
        return tell

    sys.settrace(tell)
    try:
        await action()
    finally:
        sys.settrace(None)
    return count


async def count(line: Line, *, repeats: int, where: dict[str, Counter[str]] | None) -> dict[str, dict[str, int]]:
    """The least of `repeats` counts, by kind of request."""
    found: dict[str, dict[str, int]] = {}
    number = 0

    async def once(kind: str, measure: Callable[[Action], Awaitable[int]]) -> int:
        nonlocal number
        number += 1
        request = line.request(request_of(kind, number))
        counted = await measure(lambda: line.ask(request))
        line.check(known=kind == "hit" and number > _HOT)
        return counted

    for kind in KINDS:
        for _ in range(_WARM_UP):
            await once(kind, calls_of)
        # A hit takes requests from the shared limit by the handful, so only one of many takes the least.
        times = 10 * repeats if kind == "hit" else repeats
        calls = [await once(kind, calls_of) for _ in range(times)]
        instructions = [await once(kind, instructions_of) for _ in range(times)]
        found[kind] = {"calls": min(calls), "instructions": min(instructions)}
        if where is not None:
            await once(kind, partial(calls_of, where=where.setdefault(kind, Counter())))
    return found


async def measure(*, repeats: int, layer: bool, where: dict[str, Counter[str]] | None) -> dict[str, dict[str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder)) as visitor:
            line = Line(Useless(visitor.door) if layer else visitor.door, visitor.token)
            return await count(line, repeats=repeats, where=where)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hot_path", description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--layer", action="store_true", help="with a useless middleware around everything")
    parser.add_argument("--where", action="store_true", help="say which functions were called, most often first")
    options = parser.parse_args()
    where: dict[str, Counter[str]] | None = {} if options.where else None
    with fake_provider() as provider:
        os.environ |= {"OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "any"}
        print(json.dumps(asyncio.run(measure(repeats=options.repeats, layer=options.layer, where=where))))
    for kind, names in (where or {}).items():
        print(kind)
        for name, times in names.most_common(60):
            print(f"{times:6} {name.rpartition('site-packages/')[2]}")


if __name__ == "__main__":
    main()
