"""Raw bytes and hand-made JSON against every route: an answer for each, never a 5xx, each 4xx as documented."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest

from tests.figures import Figures
from tests.fuzz.conftest import Target
from tests.fuzz.judge import Judge
from tests.fuzz.raw import RawRequest, RawRequests

_CONNECTIONS = 12
_PATIENCE_S = 60.0


async def answer_to(port: int, sent: bytes) -> tuple[int, str, bytes] | None:
    """Status, content type and body; `None` where the connection ended without an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                status = int(head.split()[1])
                if status >= 200:
                    break
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            body = b""
            if not sent.startswith(b"HEAD"):
                length = headers.get("content-length")
                body = await reader.readexactly(int(length)) if length is not None else await reader.read()
            return status, headers.get("content-type", ""), body
    except (ConnectionError, asyncio.IncompleteReadError):
        return None
    finally:
        writer.close()


async def besiege(port: int, requests: Iterator[RawRequest], judge: Judge) -> tuple[list[str], Counter[str]]:
    """Send all of `requests` over fresh connections; gives what was wrong, and how many of each kind there were."""
    complaints: list[str] = []
    kinds: Counter[str] = Counter()

    async def send_on() -> None:
        for request in requests:
            kinds[request.kind] += 1
            answer = await answer_to(port, request.sent)
            complaint = judge.complaint(request.method, request.path, *answer) if answer else "no answer"
            if complaint is not None:
                complaints.append(f"{complaint} to {request.sent[:600]!r}")

    async with asyncio.TaskGroup() as group:
        for _ in range(_CONNECTIONS):
            group.create_task(send_on())
    return complaints, kinds


async def fuzz(target: Target, number: int, seed: int, figures: Figures) -> None:
    figures.seed = seed
    judge = Judge(target.document)
    credentials = [None, target.admin, target.admin, target.user, target.token]
    requests = RawRequests(target.document, seed=seed, credentials=credentials, known=target.known)
    began = time.perf_counter()
    complaints, kinds = await besiege(target.port, islice(requests, number), judge)
    rate = number / (time.perf_counter() - began)
    print(f"\nseed {seed}: {number} inputs, {rate:.0f}/s, {dict(kinds)}, answered with {dict(judge.statuses)}")
    dropped = number - judge.statuses.total()
    faults = sum(count for status, count in judge.statuses.items() if status >= 500)
    busy = judge.statuses[503]
    reached = f"{dropped} dropped, {faults - busy} 5xx, {len(complaints)} wrong; {busy} x 503 of a busy machine"
    figures.note(f"{number} bad requests", "0 dropped, 0 5xx, all as documented", reached)
    assert not complaints, f"seed {seed}: {len(complaints)} of {number}:\n" + "\n".join(complaints[:20])
    assert (await answer_to(target.port, b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") or (0,))[0] == 200
    judge.check()
    # The control: the inputs get past the door, and are refused in many ways.
    assert {200, 201, 400, 401, 403, 404, 405, 415, 422} <= judge.statuses.keys()
    assert kinds.keys() == {"json", "bytes", "path", "headers", "method", "head", "garbage"}


async def test_bad_requests_are_answered_as_documented(target: Target, figures: Figures) -> None:
    await fuzz(target, 1500, seed=10, figures=figures)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\noops!",
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\noops!",
        b'HTTP/1.1 422 Unprocessable\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{"detail": 1}',
        b"HTTP/1.1 418 I am a teapot\r\ncontent-length: 0\r\n\r\n",
    ],
    ids=["none", "500", "plain text", "FastAPI's own", "418"],
)
async def test_a_server_that_answers_wrongly_is_found_out(target: Target, answer: bytes) -> None:
    """The control: for each bad request a complaint."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    wrong = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with wrong:
        requests = RawRequests(target.document, seed=10, credentials=[None], known=target.known)
        plain = (request for request in requests if request.method in {"GET", "POST"})
        port = wrong.sockets[0].getsockname()[1]
        complaints, _ = await besiege(port, islice(plain, 50), Judge(target.document))
    assert len(complaints) == 50


@pytest.mark.soak
@pytest.mark.parametrize("target", ["sqlite", pytest.param("postgresql", marks=pytest.mark.service)], indirect=True)
async def test_forty_thousand_bad_requests_are_answered_as_documented(target: Target, figures: Figures) -> None:
    await fuzz(target, 40_000, seed=int(os.environ.get("FUZZ_SEED", time.time())), figures=figures)
