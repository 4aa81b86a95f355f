"""Admission: a bound on requests in flight, and slots that come back however a request ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application

Ending = Literal["answered", "no body", "gone before", "gone while answered", "cancelled"]

BOUND = 2


@pytest.fixture
async def narrow(fake: FakeProvider, tmp_path: Path) -> AsyncIterator[Application]:
    async with open_application(
        tmp_path / "data",
        default_model="openai-chat:gpt-4o-mini",
        max_requests_in_flight=BOUND,
        rate_limit_per_minute=0,
        model_timeout_seconds=2,
    ) as opened:
        yield opened


async def raw(
    application: Application, method: str, path: str, ending: Ending, body: dict[str, Any] | None = None
) -> None:
    """One request as the server's protocol would make it, ended as `ending` says."""
    sent = json.dumps(body or {}).encode()
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    headers += [(b"content-length", b"%d" % len(sent))]
    headers += [(b"authorization", application.client.headers["authorization"].encode())]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""}
    scope |= {"method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
    scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}
    incoming: list[dict[str, Any]] = [{"type": "http.request", "body": sent, "more_body": False}]
    gone = asyncio.Event()
    if ending == "gone before":
        incoming.clear()
        gone.set()
    elif ending == "no body":
        incoming = [{"type": "http.request", "body": sent[:1], "more_body": True}]
        gone.set()

    async def receive() -> Any:
        if incoming:
            return incoming.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if ending == "gone while answered":
            gone.set()
            raise OSError("the client is gone")

    serving = asyncio.create_task(application.door(scope, receive, send))  # pyright: ignore[reportArgumentType]
    if ending == "cancelled":
        for _ in range(3):
            await asyncio.sleep(0)
        serving.cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(serving, return_exceptions=True)


def operations(application: Application) -> list[tuple[str, str]]:
    """Every operation of the OpenAPI document that ends by itself, with its parameters filled in."""
    found: list[tuple[str, str]] = []
    for path, methods in application.door.api.openapi()["paths"].items():
        filled = "/".join("x" if part.startswith("{") else part for part in path.split("/"))
        found += [(method.upper(), filled) for method in methods]
    return found


@pytest.mark.parametrize("ending", ["answered", "no body", "gone before", "gone while answered", "cancelled"])
async def test_every_route_gives_its_slot_back(narrow: Application, ending: Ending) -> None:
    slots = narrow.door.admission.slots
    for method, path in operations(narrow):
        if path.startswith("/api/v1/performance/stream"):
            continue
        await asyncio.gather(*(raw(narrow, method, path, ending) for _ in range(BOUND)))
        assert slots.in_use == 0, f"{method} {path}"
    assert slots.refused == 0


@pytest.mark.parametrize(
    ("message", "status"),
    [("Hi", 200), ("fault:500", 502), ("fault:429", 429), ("fault:hang", 504), ("fault:cut", 502)],
)
async def test_a_prompt_gives_its_slot_back_however_the_provider_fails(
    narrow: Application, message: str, status: int
) -> None:
    for round_ in range(3):
        replies = await asyncio.gather(
            *(narrow.prompt(f"{message} nonce:{round_}-{n}", cache={"mode": "off"}) for n in range(BOUND))
        )
        assert {reply.status_code for reply in replies} <= {status, 503}
        assert narrow.door.admission.slots.in_use == 0


@pytest.mark.parametrize("ending", ["gone while answered", "cancelled"])
async def test_a_prompt_gives_its_slot_back_when_its_client_leaves(
    narrow: Application, fake: FakeProvider, ending: Ending
) -> None:
    fake.latency_s = 0.05
    for round_ in range(5):
        body = {"message": f"nonce:{round_}", "cache": {"mode": "off"}}
        await asyncio.gather(*(raw(narrow, "POST", "/api/v1/agent/prompt", ending, body) for _ in range(BOUND)))
        assert (await narrow.prompt(f"nonce:third-{round_}")).status_code == 200
    assert narrow.door.admission.slots.in_use == 0


async def test_beyond_the_bound_requests_wait_beyond_the_queue_they_are_refused(
    narrow: Application, fake: FakeProvider
) -> None:
    fake.hold()
    asked = [asyncio.create_task(narrow.prompt(f"nonce:{n}")) for n in range(BOUND * 2)]
    async with asyncio.timeout(10):
        while fake.calls < BOUND:
            await asyncio.sleep(0.01)
    refused = await narrow.prompt("nonce:late")
    assert refused.status_code == 503
    assert refused.json()["type"] == "urn:mnemosine:problem:overloaded"
    assert refused.headers["retry-after"] == "5"
    assert fake.calls == BOUND
    # What tells how the server is doing does not wait with the others.
    for path in ("/livez", "/readyz", "/health", "/metrics", "/api/v1/performance/metrics"):
        assert (await narrow.client.get(path)).status_code == 200, path
    fake.release()
    assert [reply.status_code for reply in await asyncio.gather(*asked)] == [200] * (BOUND * 2)
    assert narrow.door.admission.slots.in_use == 0
