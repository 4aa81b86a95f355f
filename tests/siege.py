"""Clients on plain sockets: some never rest and keep book, some come all at once, some stay with their worker."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass(slots=True)
class Book:
    """`lost` are requests that were sent whole and never answered whole; `refused` never got a connection."""

    statuses: Counter[int] = field(default_factory=Counter[int])
    lost: list[str] = field(default_factory=list[str])
    refused: int = 0

    @property
    def answered(self) -> int:
        return self.statuses.total()


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, whole; `at` is when it was, on the monotonic clock."""

    status: int
    headers: dict[str, str]
    body: bytes
    at: float

    def json(self) -> Any:
        return json.loads(self.body)


class Line:
    """A connection that stays open, and hence with one worker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.port: int = writer.get_extra_info("sockname")[1]
        """Of this end."""
        self.worker = 0
        """The pid of the process at the other end, where somebody found it out."""

    @classmethod
    async def open(cls, url: str) -> Self:
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send one request and wait for its answer. Raises `OSError` or `EOFError` where the worker went away."""
        self.send(method, path, body, **headers)
        return await self.hear()

    def send(self, method: str, path: str, body: object = None, **headers: str) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(content)}"]
        if body is not None:
            lines.append("Content-Type: application/json")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + content)

    async def hear(self) -> Answer:
        async with asyncio.timeout(90):
            return await _answer(self._reader)

    async def stream(self, method: str, path: str, body: object = None, **headers: str) -> "Stream":
        """Send one request and give its answer as soon as it begins."""
        self.send(method, path, body, **headers)
        async with asyncio.timeout(90):
            return Stream(self._reader, *_head((await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")))

    async def aclose(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


@dataclass(slots=True)
class Stream:
    """An answer that comes in chunks; `body` is what has come of it."""

    _reader: asyncio.StreamReader
    status: int
    headers: dict[str, str]
    body: bytes = b""
    ended: bool = False

    async def more(self) -> bool:
        """Wait for the next chunk; `False` where there is none."""
        async with asyncio.timeout(90):
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            self.body += (await self._reader.readexactly(size + 2))[:-2]
        self.ended = not size
        return not self.ended


async def burst(
    urls: Sequence[str], number: int, method: str, path: str, body: Callable[[int], object], **headers: str
) -> list[Answer]:
    """`number` requests at once, each on a connection of its own that stands before the first is sent."""
    lines = await asyncio.gather(*(Line.open(urls[at % len(urls)]) for at in range(number)))
    try:
        for at, line in enumerate(lines):
            line.send(method, path, body(at), **headers)
        return await asyncio.gather(*(line.hear() for line in lines))
    finally:
        await asyncio.gather(*(line.aclose() for line in lines))


@asynccontextmanager
async def siege(
    url: str,
    request: bytes,
    *,
    clients: int = 40,
    keep_alive: bool = False,
    is_whole: Callable[[bytes], bool] = lambda body: True,
) -> AsyncGenerator[Book]:
    """`clients` that send `request` again as soon as it is answered; the book is complete when the block has ended.

    `request` is everything behind the first header lines `Host` and `Connection`, which are added here. When the
    block ends, the clients finish the request that they are waiting for. An answer counts if its body `is_whole`.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    first_line, rest = request.split(b"\r\n", 1)
    connection = b"keep-alive" if keep_alive else b"close"
    whole = b"%s\r\nHost: %s:%d\r\nConnection: %s\r\n%s" % (first_line, host.encode(), port, connection, rest)
    book, end = Book(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(_client(host, port, whole, keep_alive, is_whole, book, end))
        try:
            yield book
        finally:
            end.set()


def get(path: str, **headers: str) -> bytes:
    """A request for `siege`."""
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A request with a JSON body for `siege`."""
    lines = [f"POST {path} HTTP/1.1", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + body


async def _client(
    host: str,
    port: int,
    request: bytes,
    keep_alive: bool,
    is_whole: Callable[[bytes], bool],
    book: Book,
    end: asyncio.Event,
) -> None:
    while not end.is_set():
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            book.refused += 1
            await asyncio.sleep(0.02)
            continue
        number = 0
        try:
            while not end.is_set():
                number += 1
                writer.write(request)
                answer = await _answer(reader)
                if not is_whole(answer.body):
                    raise ValueError(f"the answer ends with {answer.body[-80:]!r}")
                book.statuses[answer.status] += 1
                if not (keep_alive and answer.headers.get("connection") != "close"):
                    break
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            book.lost.append(f"request {number} of a connection: {error!r}"[:200])
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> Answer:
    status, headers = _head((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
    body = bytearray()
    if "content-length" in headers:
        body += await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    return Answer(status, headers, bytes(body), time.monotonic())


def _head(head: str) -> tuple[int, dict[str, str]]:
    lines = head.split("\r\n")
    pairs = [line.split(": ", 1) for line in lines[1:] if ": " in line]
    return int(lines[0].split()[1]), {name.lower(): value for name, value in pairs}
