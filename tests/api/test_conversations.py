"""Conversations over HTTP, on SQLite and PostgreSQL: kept, continued in order, forked, and nobody else's."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application


@pytest.fixture
async def application(fake: FakeProvider, tmp_path: Path, installed_url: str) -> AsyncIterator[Application]:
    async with open_application(
        tmp_path / "data", default_model="openai-chat:gpt-4o-mini", database_url=installed_url
    ) as opened:
        yield opened


async def begin(application: Application) -> str:
    reply = await application.client.post("/api/v1/conversations", json={"title": "Weather"})
    assert reply.status_code == 201
    return reply.json()["id"]


async def messages(application: Application, conversation_id: str) -> list[dict[str, Any]]:
    reply = await application.client.get(f"/api/v1/conversations/{conversation_id}")
    assert reply.status_code == 200, reply.text
    return reply.json()["messages"]


async def test_what_was_said_before_reaches_the_model_and_is_shown(
    application: Application, fake: FakeProvider
) -> None:
    talk = await begin(application)
    first = await application.prompt("nonce:one", conversation_id=talk)
    second = await application.prompt("nonce:two", conversation_id=talk)
    assert first.json()["conversation_id"] == second.json()["conversation_id"] == talk
    said = [(message["role"], message["content"]) for message in fake.requests[-1].body["messages"]]
    assert said == [
        ("user", "nonce:one"),
        ("assistant", first.json()["response"]),
        ("user", "nonce:two"),
    ]
    shown = await messages(application, talk)
    assert [message["role"] for message in shown] == ["user", "assistant", "user", "assistant"]
    assert [message["text"] for message in shown][::2] == ["nonce:one", "nonce:two"]


async def test_prompts_at_once_wait_for_their_turn_and_nothing_is_lost(
    application: Application, fake: FakeProvider
) -> None:
    talk = await begin(application)
    replies = await asyncio.gather(*(application.prompt(f"nonce:{n}", conversation_id=talk) for n in range(12)))
    assert {reply.status_code for reply in replies} == {200}
    shown = await messages(application, talk)
    assert sorted(message["text"] for message in shown[::2]) == sorted(f"nonce:{n}" for n in range(12))
    for asked, answered in zip(shown[::2], shown[1::2], strict=True):
        assert f"{asked['text']} " in answered["text"]


async def test_who_does_not_want_to_wait_is_refused(application: Application, fake: FakeProvider) -> None:
    talk = await begin(application)
    fake.hold()
    running = asyncio.create_task(application.prompt("nonce:first", conversation_id=talk))
    async with asyncio.timeout(10):
        while not fake.calls:
            await asyncio.sleep(0.01)
    refused = await application.prompt("nonce:second", conversation_id=talk, on_busy="reject")
    fake.release()
    assert refused.status_code == 409
    assert (await running).status_code == 200
    assert len(await messages(application, talk)) == 2
    assert (await application.prompt("nonce:third", conversation_id=talk, on_busy="reject")).status_code == 200


async def test_no_connection_is_held_while_the_model_thinks(application: Application, fake: FakeProvider) -> None:
    talks = [await begin(application) for _ in range(10)]
    fake.hold()
    running = [asyncio.create_task(application.prompt(f"nonce:{n}", conversation_id=t)) for n, t in enumerate(talks)]
    async with asyncio.timeout(20):
        while fake.calls < 10 or application.runtime.database.pool_status().checked_out:
            await asyncio.sleep(0.01)
    assert not any(task.done() for task in running), "the control: the models were still thinking"
    fake.release()
    assert {reply.status_code for reply in await asyncio.gather(*running)} == {200}


async def test_a_hit_and_a_stream_are_kept_like_any_answer(application: Application, fake: FakeProvider) -> None:
    talk, other = await begin(application), await begin(application)
    await application.prompt("nonce:same", conversation_id=talk)
    hit = await application.prompt("nonce:same", conversation_id=other)
    assert hit.headers["x-cache"] == "HIT"
    assert (await messages(application, other))[1]["text"] == hit.json()["response"]
    streamed = await application.prompt("nonce:more", conversation_id=other, stream=True)
    assert "event: done" in streamed.text
    assert [message["text"] for message in await messages(application, other)][2] == "nonce:more"
    assert fake.calls == 2


async def test_a_failed_prompt_leaves_nothing_and_the_conversation_free(application: Application) -> None:
    talk = await begin(application)
    assert (await application.prompt("fault:500", conversation_id=talk)).status_code == 502
    assert await messages(application, talk) == []
    assert (await application.prompt("nonce:next", conversation_id=talk, on_busy="reject")).status_code == 200


async def test_a_fork_goes_its_own_way(application: Application) -> None:
    talk = await begin(application)
    await application.prompt("nonce:a", conversation_id=talk)
    await application.prompt("nonce:b", conversation_id=talk)
    shown = await messages(application, talk)
    fork = await application.client.post(f"/api/v1/conversations/{talk}/fork", json={"up_to": shown[1]["id"]})
    assert fork.status_code == 201
    await application.prompt("nonce:c", conversation_id=fork.json()["id"])
    forked = await messages(application, fork.json()["id"])
    assert [message["text"] for message in forked][::2] == ["nonce:a", "nonce:c"]
    assert await messages(application, talk) == shown


async def test_they_are_listed_by_pages_renamed_exported_and_deleted(application: Application) -> None:
    talks = [await begin(application) for _ in range(5)]
    found: list[str] = []
    cursor = ""
    while True:
        page = (await application.client.get(f"/api/v1/conversations?limit=2{cursor}")).json()
        found += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert sorted(found) == sorted(talks)
    path = f"/api/v1/conversations/{talks[0]}"
    assert (await application.client.patch(path, json={"title": "Rain"})).json()["title"] == "Rain"
    await application.prompt("nonce:x", conversation_id=talks[0])
    assert len((await application.client.get(f"{path}/export")).json()["messages"]) == 2
    assert (await application.client.delete(path)).status_code == 204
    assert (await application.client.get(path)).status_code == 404
    assert (await application.prompt("x", conversation_id=talks[0])).status_code == 404


async def test_somebody_elses_conversation_is_not_there(application: Application) -> None:
    talk = await begin(application)
    await application.prompt("nonce:secret", conversation_id=talk)
    async with application.user() as stranger:
        path = f"/api/v1/conversations/{talk}"
        replies = [
            await stranger.get(path),
            await stranger.get(f"{path}/export"),
            await stranger.patch(path, json={"title": "mine"}),
            await stranger.post(f"{path}/fork", json={}),
            await stranger.delete(path),
            await stranger.post("/api/v1/agent/prompt", json={"message": "x", "conversation_id": talk}),
        ]
        assert [reply.status_code for reply in replies] == [404] * 6
        assert (await stranger.get("/api/v1/conversations")).json()["items"] == []
    assert len(await messages(application, talk)) == 2
