"""Clients that never rest and keep book: what became of every request that left them whole."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
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
                status, stays, body = await _answer(reader)
                if not is_whole(body):
                    raise ValueError(f"the answer ends with {body[-80:]!r}")
                book.statuses[status] += 1
                if not (keep_alive and stays):
                    break
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            book.lost.append(f"request {number} of a connection: {error!r}"[:200])
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    lines = head.split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
    body = bytearray()
    if b"content-length" in headers:
        body += await reader.readexactly(int(headers[b"content-length"]))
    elif headers.get(b"transfer-encoding") == b"chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    return int(lines[0].split()[1]), headers.get(b"connection") != b"close", bytes(body)
