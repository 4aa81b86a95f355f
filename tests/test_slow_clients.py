"""Clients that send slowly, never, or too much: they lose their connection, and nobody else notices."""

import asyncio
import contextlib
import json
import select
import socket
from collections.abc import Iterator

import httpx2
import psutil
import pytest

from tests.process import ServerProcess, serving

PASSWORD = "a password for tests"


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "two workers"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("slow"), "--workers", request.param, ADMIN_PASSWORD=PASSWORD) as server:
        server.wait_for("/readyz")
        server.sign_in(password=PASSWORD)
        yield server


async def connect(server: ServerProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))


async def answer_to(server: ServerProcess, sent: bytes) -> bytes:
    """Everything that comes back until the server closes."""
    reader, writer = await connect(server)
    try:
        writer.write(sent)
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.close()


async def one_answer(reader: asyncio.StreamReader) -> bytes:
    """An answer with a declared length, however the connection ends behind it."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


def is_problem(answer: bytes, status: int) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    return (
        head.split()[1] == str(status).encode()
        and b"content-type: application/problem+json" in head.lower()
        and b"connection: close" in head.lower()
        and json.loads(body)["status"] == status
        and json.loads(body).keys() >= {"type", "title", "detail", "request_id"}
    )


async def test_half_open_requests_are_closed_while_others_are_served(server: ServerProcess) -> None:
    beginnings = [b"GET /livez HTTP/1.1\r\nHost:"] * 500
    half_body = (
        b"POST /api/v1/auth/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 100\r\n\r\nusername="
    )
    beginnings += [half_body] * 100
    # Neither begins a request, the second after one that was answered; its timer of the idle connection has stopped.
    beginnings += [b""] * 50 + [b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"] * 10
    connections = [await connect(server) for _ in beginnings]
    async with httpx2.AsyncClient() as client:
        try:
            for (_, writer), beginning in zip(connections, beginnings, strict=True):
                writer.write(beginning)
            for reader, writer in connections[650:]:
                await reader.readuntil(b"alive")
                writer.write(b"\r\n")
            closed = asyncio.gather(*(reader.read() for reader, _ in connections), return_exceptions=True)
            async with asyncio.timeout(30):  # 15 s, and what a busy machine adds
                while not closed.done():
                    assert (await client.get(f"{server.url}/livez")).status_code == 200
                    await asyncio.sleep(0.25)
        finally:
            for _, writer in connections:
                writer.close()
    answers = await closed
    assert all(isinstance(answer, bytes) and is_problem(answer, 408) for answer in answers[:500])
    assert all(isinstance(answer, bytes) and is_problem(answer, 400) for answer in answers[500:600])


def flood(port: int, head: bytes, part: bytes) -> tuple[bytes, int]:
    """Send `head`, then 300 MB until the server says something; gives the answer, and how much was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head)
        sent, answer = 0, b""
        with contextlib.suppress(OSError):
            while sent < 300 * 2**20 and not select.select([connection], [], [], 0)[0]:
                connection.sendall(part)
                sent += len(part)
        # What has arrived can be read even where the connection was reset behind it.
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                answer += data
        return answer, sent


def test_a_body_of_300_mb_is_refused_without_being_read(server: ServerProcess) -> None:
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    before = sum(process.memory_info().rss for process in processes)
    part = b"x" * 65536
    for framing, piece in (
        ("Content-Length: 314572800", part),
        ("Transfer-Encoding: chunked", b"10000\r\n%s\r\n" % part),
    ):
        head = (
            "POST /api/v1/agent/prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: {server.headers['Authorization']}\r\n{framing}\r\n\r\n"
        )
        answer, sent = flood(int(server.url.rpartition(":")[2]), head.encode(), piece)
        assert is_problem(answer, 413), answer[:300]
        # The limit, what is read on for a moment, and what the kernel buffers on both sides.
        assert sent < 24 * 2**20
    assert sum(process.memory_info().rss for process in processes) < before + 20 * 2**20


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        pytest.param(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, id="url"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"a" * 17000 + b"\r\n\r\n", 431, id="one header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 101 + b"\r\n", 431, id="many headers"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 200_000, 431, id="no end"),
        pytest.param(b"NONSENSE\r\n\r\n", 400, id="no http"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400, id="no such encoding"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, id="no chunk"),
    ],
)
async def test_a_head_beyond_the_bounds_is_refused(server: ServerProcess, request_head: bytes, status: int) -> None:
    assert is_problem(await answer_to(server, request_head), status)


async def test_a_chunk_that_cannot_be_read_behind_a_go_ahead_is_refused_quietly(server: ServerProcess) -> None:
    head = b"POST /api/v1/auth/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\nExpect: 100-continue\r\n\r\n"
    assert is_problem(await answer_to(server, head), 400)
    assert "Traceback" not in server.output()


async def test_a_refused_request_keeps_its_connection_where_its_body_has_arrived(server: ServerProcess) -> None:
    reader, writer = await connect(server)
    for _ in range(2):
        writer.write(
            b"POST /api/v1/agent/prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
        assert b" 401 " in await one_answer(reader)
    writer.close()


async def test_a_client_that_expects_a_go_ahead_is_refused_without_one(server: ServerProcess) -> None:
    head = (
        b"POST /api/v1/agent/prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 314572800\r\nExpect: 100-continue\r\n\r\n"
    )
    answer = await answer_to(server, head)
    assert is_problem(answer, 413)
    assert b"100 Continue" not in answer
