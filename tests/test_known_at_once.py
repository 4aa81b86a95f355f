"""Known questions over real connections: answered while the bytes are parsed, the same as on every other way."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.api.front_door import FrontDoor
from app.server.connection import Connection
from app.server.server import Options, Server
from tests.application import Application, open_application

Reply = tuple[int, dict[str, str], bytes]

VOLATILE_HEADERS = {
    *("server-timing", "x-request-id", "content-length", "age", "cache-status", "date"),
    *("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
}


@dataclass
class Line:
    """One connection, on which bytes are sent as they are."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    credential: str

    def request(self, body: bytes, *, version: str = "1.1", **headers: str) -> bytes:
        lines = {
            "Host": "127.0.0.1",
            "Authorization": self.credential,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"POST /api/v1/agent/prompt HTTP/{version}\r\n{head}\r\n".encode() + body

    async def reply(self) -> Reply:
        async with asyncio.timeout(30):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")[:-2]
            headers = dict(line.split(": ", 1) for line in head[1:])
            assert len(headers) == len(head) - 1, "a header twice"
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body

    async def ask(self, body: bytes, **headers: str) -> Reply:
        self.writer.write(self.request(body, **headers))
        return await self.reply()


@pytest.fixture
async def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Application]:
    async with open_application(tmp_path / "data", rate_limit_per_minute=100) as opened:
        # Whoever is not remembered any more is not answered at once; a busy machine must not make that happen here.
        monkeypatch.setattr(opened.runtime.callers, "_memory_s", 3600.0)
        yield opened


@pytest.fixture
def server(application: Application) -> Iterator[Server]:
    # uvicorn sets the levels of its loggers for the whole process.
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")]
    before = [logger.level for logger in loggers]
    server = Server(application.door, Options())
    server.config.load()
    yield server
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture
async def line(application: Application, server: Server) -> AsyncIterator[Line]:
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server.config, server.server_state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    yield Line(reader, writer, application.client.headers["authorization"])
    writer.close()
    listening.close()
    async with asyncio.timeout(10):
        while server.server_state.connections:
            await asyncio.sleep(0.01)


def body_of(message: str) -> bytes:
    return json.dumps({"message": message}).encode()


def shown(reply: Reply) -> Any:
    status, headers, body = reply
    told = json.loads(body)
    assert len(told.pop("id")) == 32
    assert told.pop("processing_time_ms") >= 0
    named = {name: value for name, value in headers.items() if name not in VOLATILE_HEADERS}
    return status, list(told.items()), named, sorted(headers)


@pytest.fixture
def served(application: Application, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that went through a task of their own."""
    asked: list[str] = []
    serve = FrontDoor.__call__

    async def noting(self: FrontDoor, scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await serve(self, scope, receive, send)

    monkeypatch.setattr(FrontDoor, "__call__", noting)
    return asked


async def test_three_ways_give_the_same_answer(line: Line, served: list[str], application: Application) -> None:
    body = body_of('quotes " and ,"reply":{')
    assert (await line.ask(body))[1]["x-cache"] == "MISS"
    assert (await line.ask(body))[1]["x-cache"] == "HIT"
    assert len(served) == 2
    hits = application.runtime.cache.counts.hits
    at_once = await line.ask(body)
    assert len(served) == 2, "the control: no task was made for it"
    with_a_task = await line.ask(body, Connection="close, te")
    assert len(served) == 3
    assert shown(at_once)[:2] == shown(with_a_task)[:2]
    reader, writer = await asyncio.open_connection(*line.writer.get_extra_info("peername"))
    by_framework = await Line(reader, writer, line.credential).ask(body, Origin="https://elsewhere.example")
    writer.close()
    assert shown(at_once) == shown(by_framework)
    assert application.runtime.cache.counts.hits == hits + 3


@pytest.mark.parametrize("cut", [20, -2])
async def test_what_comes_in_pieces_is_answered_too(line: Line, served: list[str], cut: int) -> None:
    body = body_of("in pieces")
    first = [await line.ask(body) for _ in range(3)][-1]
    count = len(served)
    request = line.request(body)
    line.writer.write(request[:cut])
    await asyncio.sleep(0.1)
    line.writer.write(request[cut:])
    assert shown(await line.reply()) == shown(first)
    # Only a head in pieces still comes to its end with the whole body.
    assert len(served) == count + (cut < 0)
    assert shown(await line.ask(body)) == shown(first)


async def test_many_in_one_piece_are_answered_in_their_order(line: Line, served: list[str]) -> None:
    known, new = body_of("known"), body_of("new")
    for _ in range(3):
        await line.ask(known)
    requests = [line.request(body, X_Request_ID=f"n{n}") for n, body in enumerate([known, known, new, known])]
    line.writer.write(b"".join(requests))
    replies = [await line.reply() for _ in requests]
    assert [headers["x-request-id"] for _, headers, _ in replies] == ["n0", "n1", "n2", "n3"]
    assert [headers["x-cache"] for _, headers, _ in replies] == ["HIT", "HIT", "MISS", "HIT"]
    assert len(served) == 4, "the last one waits for the one before it"


async def test_limits_and_revocations_hold(line: Line, served: list[str], application: Application) -> None:
    body = body_of("limited")
    replies = [await line.ask(body) for _ in range(5)]
    left = [int(headers["x-ratelimit-remaining-requests"]) for _, headers, _ in replies]
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0] <= 99
    line.writer.write(line.request(body) * 300)
    statuses = [(await line.reply())[0] for _ in range(300)]
    assert set(statuses) == {200, 429}
    # A few come back while they are asked: 100 a minute.
    assert 95 <= statuses.count(200) < 250
    assert application.runtime.metrics.snapshot().count("requests", status="4xx") == statuses.count(429)
    await application.client.post("/api/v1/auth/logout")
    assert (await line.ask(body))[0] == 401


async def test_a_server_that_leaves_says_so(line: Line, served: list[str], server: Server) -> None:
    body = body_of("the last one")
    for _ in range(3):
        await line.ask(body)
    count = len(served)
    server.server_state.leaving = True
    assert (await line.ask(body))[1]["connection"] == "close"
    assert len(served) == count + 1
