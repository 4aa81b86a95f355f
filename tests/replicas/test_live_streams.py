"""A replica that dies while the other one passes on what it says."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import httpx2

from tests.process import ServerProcess
from tests.replicas.conftest import Replicas, ask

PROMPT = "/api/v1/agent/prompt"
MESSAGE = "nonce:dies"
BEGINNING = "This answer belongs to nonce:dies"
"""Of the answer; less than its first half."""


def stream(server: ServerProcess, client: httpx2.Client) -> Iterator[str]:
    """The text of the answer so far, whenever there is more of it, and whatever comes."""
    body = {"message": MESSAGE, "stream": True}
    with client.stream("POST", server.url + PROMPT, json=body, headers=server.headers) as reply:
        assert reply.status_code == 200
        heard = ""
        for piece in reply.iter_text():
            heard += piece
            yield heard


def said(heard: str) -> str:
    lines = [line for line in heard.splitlines() if line.startswith('data: {"text":')]
    return "".join(line.removeprefix('data: {"text":"').removesuffix('"}') for line in lines)


def until_begun(told: Iterator[str]) -> str:
    return next(heard for heard in told if said(heard).startswith(BEGINNING))


def test_who_hears_a_replica_that_is_killed_gets_an_error_and_nothing_is_kept(replicas: Replicas) -> None:
    one, two = replicas.servers
    replicas.provider.control(chunk_gap_s=0.001, stop_at=10)
    try:
        with httpx2.Client(timeout=60) as client:
            first, second = stream(one, client), stream(two, client)
            until_begun(first)
            calls = replicas.provider.stats()["calls"]
            heard = until_begun(second)
            os.kill(one.process.pid, signal.SIGKILL)
            replicas.provider.control(stop_at=None)
            with suppress(httpx2.TransportError):
                for heard_of_dead in first:
                    assert "event: done" not in heard_of_dead
            heard = [heard, *second][-1]
            assert replicas.provider.stats()["calls"] == calls
    finally:
        replicas.provider.control(chunk_gap_s=0, stop_at=None)
    assert "event: error" in heard
    assert "urn:mnemosine:problem:unavailable" in heard
    assert "event: done" not in heard
    again = ask(two, MESSAGE)
    assert again.headers["x-cache"] == "MISS"
    assert replicas.provider.stats()["calls"] == calls + 1
