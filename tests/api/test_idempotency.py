"""`Idempotency-Key`: one run for one key, whoever asks again, whenever, and on whichever worker."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from starlette.responses import StreamingResponse

from app.api.idempotency import IdempotentRoute
from app.core.idempotency import Idempotency, Recording, RequestKey
from benchmarks.fake_provider import FakeProvider
from tests.application import USER_PASSWORD, Application, open_application

PROMPT = "/api/v1/agent/prompt"


@asynccontextmanager
async def worker(tmp_path: Path, installed_url: str) -> AsyncGenerator[Application]:
    model = "openai-chat:gpt-4o-mini"
    async with open_application(tmp_path / "data", database_url=installed_url, default_model=model) as opened:
        yield opened


@pytest.fixture
async def application(fake: FakeProvider, tmp_path: Path, installed_url: str) -> AsyncIterator[Application]:
    async with worker(tmp_path, installed_url) as opened:
        yield opened


async def ask(
    client: httpx2.AsyncClient, message: str = "nonce:A", *, key: str = "key-1", path: str = PROMPT, **fields: Any
) -> httpx2.Response:
    # Without the cache, so that a second run would show.
    body = {"message": message, "cache": {"mode": "off"}, **fields}
    return await client.post(path, json=body, headers={"Idempotency-Key": key})


def is_replay(reply: httpx2.Response) -> bool:
    return reply.headers.get("idempotent-replayed") == "true"


async def test_the_same_key_and_body_give_the_same_answer_without_a_second_run(
    application: Application, fake: FakeProvider
) -> None:
    first = await ask(application.client)
    again = [await ask(application.client) for _ in range(3)]
    assert first.status_code == 200
    assert not is_replay(first)
    assert all(is_replay(reply) and reply.content == first.content for reply in again)
    assert {reply.headers["x-cache"] for reply in (first, *again)} == {"BYPASS"}
    assert len({reply.headers["x-request-id"] for reply in (first, *again)}) == 4
    assert all(int(reply.headers["content-length"]) == len(reply.content) for reply in again)
    assert fake.calls == 1
    # The control: without the header there would have been another run.
    await ask(application.client, key="key-2")
    assert fake.calls == 2


async def test_another_body_under_the_same_key_is_a_409_that_is_not_retried(
    application: Application, fake: FakeProvider
) -> None:
    await ask(application.client)
    for _ in range(2):
        other = await ask(application.client, "nonce:B")
        assert other.status_code == 409
        assert other.headers["x-should-retry"] == "false"
        assert not is_replay(other)
    assert is_replay(await ask(application.client))
    assert fake.calls == 1


async def test_thirty_at_once_join_one_run(application: Application, fake: FakeProvider) -> None:
    fake.hold()
    asked = [asyncio.create_task(ask(application.client)) for _ in range(30)]
    await fake.until(lambda: fake.calls == 1)
    conflicting = await ask(application.client, "nonce:B")
    fake.release()
    replies = await asyncio.gather(*asked)
    assert conflicting.status_code == 409
    assert {reply.content for reply in replies} == {replies[0].content}
    assert sorted(map(is_replay, replies)) == [False] + [True] * 29
    assert fake.calls == 1


async def test_a_client_that_gave_up_finds_its_answer(application: Application, fake: FakeProvider) -> None:
    fake.hold()
    impatient = asyncio.create_task(ask(application.client))
    await fake.until(lambda: fake.calls == 1)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    second = asyncio.create_task(ask(application.client))
    await asyncio.sleep(0)
    fake.release()
    reply = await second
    assert (reply.status_code, is_replay(reply), fake.calls) == (200, True, 1)


async def test_a_run_that_failed_frees_its_key(application: Application, fake: FakeProvider) -> None:
    fake.fault = "401"
    failed = await ask(application.client)
    assert failed.status_code == 502
    fake.fault = None
    calls = fake.calls
    good = await ask(application.client)
    assert (good.status_code, is_replay(good), fake.calls) == (200, False, calls + 1)
    assert is_replay(await ask(application.client))


async def test_a_refused_request_frees_its_key_for_another_body(application: Application) -> None:
    wrong = await ask(application.client, unknown="field")
    assert wrong.status_code == 422
    right = await ask(application.client)
    assert right.status_code == 200


async def test_keys_belong_to_a_caller_and_a_route(application: Application, fake: FakeProvider) -> None:
    await ask(application.client)
    async with application.user("ada") as ada:
        assert not is_replay(await ask(ada, "nonce:B"))
        assert not is_replay(await ask(ada, "nonce:A", key="key-2"))
        # Another token of the same user is the same caller, an API key is another one.
        async with application.signed_in("ada", USER_PASSWORD) as again:
            assert is_replay(await ask(again, "nonce:B"))
        key = (await ada.post("/api/v1/auth/api-keys", json={"name": "x"})).json()["key"]
        async with application.with_credential(key) as program:
            assert not is_replay(await ask(program, "nonce:C"))
    assert fake.calls == 4


async def test_who_is_not_let_in_gets_nothing_that_was_kept(application: Application) -> None:
    await ask(application.client)
    assert (await ask(application.anonymous)).status_code == 401
    async with application.with_credential("mn_000000000000_" + "0" * 43) as stranger:
        assert (await ask(stranger)).status_code == 401


@pytest.mark.parametrize("key", ["", "x" * 256, "two words"])
async def test_what_is_no_key_is_a_400(fake: FakeProvider, tmp_path: Path, key: str) -> None:
    async with worker(tmp_path, f"sqlite:///{tmp_path}/x.db") as application:
        assert (await ask(application.client, key=key)).status_code == 400


async def test_an_answer_survives_a_restart_and_goes_with_its_user(
    fake: FakeProvider, tmp_path: Path, installed_url: str
) -> None:
    async with worker(tmp_path, installed_url) as before:
        await before.client.post("/api/v1/users", json={"username": "ada", "password": USER_PASSWORD})
        async with before.signed_in("ada", USER_PASSWORD) as ada:
            first = await ask(ada)
    async with worker(tmp_path, installed_url) as after:
        async with after.signed_in("ada", USER_PASSWORD) as ada:
            again = await ask(ada)
            user_id = (await ada.get("/api/v1/auth/me")).json()["id"]
        assert (is_replay(again), again.content, fake.calls) == (True, first.content, 1)
        assert (await after.client.delete(f"/api/v1/users/{user_id}")).status_code == 204


async def test_two_workers_make_one_run(fake: FakeProvider, tmp_path: Path, installed_url: str) -> None:
    async with worker(tmp_path, installed_url) as one, worker(tmp_path, installed_url) as two:
        fake.hold()
        first = asyncio.create_task(ask(one.client))
        await fake.until(lambda: fake.calls == 1)
        others = [asyncio.create_task(ask(two.client)) for _ in range(5)]
        conflicting = await ask(two.client, "nonce:B")
        fake.release()
        replies = await asyncio.gather(first, *others)
    assert conflicting.status_code == 409
    assert {reply.content for reply in replies} == {replies[0].content}
    assert [is_replay(reply) for reply in replies] == [False] + [True] * 5
    assert fake.calls == 1


async def test_a_worker_that_goes_leaves_the_run_to_another(
    fake: FakeProvider, tmp_path: Path, installed_url: str
) -> None:
    async with worker(tmp_path, installed_url) as stays:
        async with worker(tmp_path, installed_url) as goes:
            fake.hold()
            cut = asyncio.create_task(ask(goes.client))
            await fake.until(lambda: fake.calls == 1)
            waits = asyncio.create_task(ask(stays.client))
            # It ends with the server, as an orderly shutdown does.
            await goes.runtime.idempotency.aclose()
            assert (await cut).status_code == 503
        fake.release()
        reply = await waits
    assert (reply.status_code, is_replay(reply)) == (200, False)


async def test_no_connection_is_held_while_the_model_thinks(application: Application, fake: FakeProvider) -> None:
    fake.hold()
    asked = [asyncio.create_task(ask(application.client, key=f"key-{number}")) for number in range(5)]
    await fake.until(lambda: fake.calls == 5)
    # Run rows are written in a moment of their own.
    async with asyncio.timeout(5):
        while application.runtime.database.pool_status().checked_out:
            await asyncio.sleep(0.01)
    fake.release()
    await asyncio.gather(*asked)


# Streams, with a route of our own


class Stage:
    """A route that streams what the test puts in, and counts how often it runs."""

    def __init__(self, application: Application, *, fails: bool = False) -> None:
        self.runs = 0
        self.go_on = asyncio.Event()
        self.fails = fails
        router = APIRouter(route_class=IdempotentRoute)
        router.post("/stage")(self.play)
        application.door.api.include_router(router)

    async def play(self) -> StreamingResponse:
        self.runs += 1
        return StreamingResponse(self.pieces(), media_type="text/event-stream")

    async def pieces(self) -> AsyncIterator[bytes]:
        yield b'id: 0\nevent: start\ndata: {"id":"1"}\n\n'
        yield b":\n\n"
        await self.go_on.wait()
        yield b'id: 1\nevent: delta\ndata: {"text":"event: error\\ndata: {\\"error\\""}\n\n'
        if self.fails:
            yield b'id: 2\nevent: error\ndata: {"status":502}\n\n'
        else:
            yield b'id: 2\nevent: done\ndata: {"id":"1"}\n\n'


async def test_a_stream_is_joined_while_it_runs_and_replayed_afterwards(application: Application) -> None:
    stage = Stage(application)
    first, joined = [asyncio.create_task(ask(application.client, path="/stage")) for _ in range(2)]
    async with asyncio.timeout(5):
        while not stage.runs:
            await asyncio.sleep(0.01)
    stage.go_on.set()
    live, shared = await first, await joined
    replayed = await ask(application.client, path="/stage")
    assert [is_replay(reply) for reply in (live, shared, replayed)] == [False, True, True]
    assert shared.content == live.content
    # What only kept the connection alive is not repeated.
    assert replayed.content == live.content.replace(b":\n\n", b"", 1)
    assert replayed.headers["content-type"].startswith("text/event-stream")
    assert stage.runs == 1


async def test_a_stream_that_failed_is_not_kept(application: Application) -> None:
    stage = Stage(application, fails=True)
    stage.go_on.set()
    for _ in range(2):
        reply = await ask(application.client, path="/stage")
        assert b"event: error" in reply.content
        assert not is_replay(reply)
    assert stage.runs == 2


# Leases and time, on the room itself


async def text_of(recording: Recording) -> bytes:
    await recording.head()
    return b"".join([piece async for piece, _ in recording.read()])


def answering(text: bytes, runs: list[bytes], *, go_on: asyncio.Event | None = None) -> Any:
    async def run(recording: Recording) -> tuple[list[tuple[bytes, bytes]], bytes]:
        runs.append(text)
        if go_on is not None:
            await go_on.wait()
        recording.begin(200, [])
        recording.add(text, last=True)
        return [], text

    return run


async def the_admin(application: Application) -> RequestKey:
    return RequestKey("k" * 64, (await application.client.get("/api/v1/auth/me")).json()["id"], "b" * 64)


async def test_a_dead_owner_is_replaced_and_a_slow_one_is_not(application: Application) -> None:
    database, key = application.runtime.database, await the_admin(application)
    runs: list[bytes] = []
    go_on = asyncio.Event()
    slow = Idempotency(database, lease_s=1.5, poll_s=0.02)
    other = Idempotency(database, lease_s=1.5, poll_s=0.02)
    first, _ = slow.answer(key, answering(b"slow", runs, go_on=go_on))
    second, _ = other.answer(key, answering(b"other", runs))
    head = asyncio.create_task(second.head())
    # Longer than the lease: it is renewed.
    await asyncio.wait((head,), timeout=2)
    assert not head.done()
    assert runs == [b"slow"]
    go_on.set()
    assert await text_of(first) == await text_of(second) == b"slow"
    assert (first.replayed, second.replayed) == (False, True)

    # One that died without a word, as by `kill -9`: its lease runs out.
    dead_key = RequestKey("d" * 64, key.user_id, key.request_digest)
    dead = Idempotency(database, lease_s=0.3)
    dead.answer(dead_key, answering(b"dead", runs, go_on=asyncio.Event()))
    async with asyncio.timeout(5):
        while b"dead" not in runs:
            await asyncio.sleep(0.01)
    (_, task) = next(iter(vars(dead)["_running"].values()))
    for renewing in asyncio.all_tasks():
        if renewing.get_name() == "idempotency-lease":
            renewing.cancel()
    third, _ = other.answer(dead_key, answering(b"third", runs))
    assert await text_of(third) == b"third"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    fourth, _ = other.answer(dead_key, answering(b"fourth", runs))
    assert await text_of(fourth) == b"third"
    for room in (slow, other):
        await room.aclose()


async def test_an_answer_is_kept_for_its_time_and_then_removed(application: Application) -> None:
    database, key = application.runtime.database, await the_admin(application)
    runs: list[bytes] = []
    brief = Idempotency(database, keep_s=0.2)
    assert await text_of(brief.answer(key, answering(b"one", runs))[0]) == b"one"
    assert await text_of(brief.answer(key, answering(b"two", runs))[0]) == b"one"
    end = datetime.now(UTC) + timedelta(seconds=0.3)
    while datetime.now(UTC) < end:
        await asyncio.sleep(0.05)
    assert await text_of(brief.answer(key, answering(b"three", runs))[0]) == b"three"
    end = datetime.now(UTC) + timedelta(seconds=0.3)
    while datetime.now(UTC) < end:
        await asyncio.sleep(0.05)
    assert await brief.clean_up() == 1
    assert await brief.clean_up() == 0
    await brief.aclose()


async def test_what_is_too_large_is_answered_and_not_kept(application: Application) -> None:
    key, runs = await the_admin(application), list[bytes]()
    small = Idempotency(application.runtime.database, max_body_bytes=10)
    for _ in range(2):
        assert await text_of(small.answer(key, answering(b"x" * 11, runs))[0]) == b"x" * 11
    assert len(runs) == 2
    await small.aclose()
