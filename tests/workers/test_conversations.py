"""One conversation and two processes: nothing is lost, nothing interleaves, and the database is never locked."""

import asyncio
import os
import signal
from collections import Counter
from typing import Any

import pytest

from tests.figures import Figures
from tests.siege import Answer, Line, post, siege
from tests.workers.conftest import PROMPT, House, User

TALKS = "/api/v1/conversations"


def begin(house: House, user: User) -> str:
    return house.request("POST", TALKS, {}, **user.headers).json()["id"]


def said_in(house: House, user: User, talk: str) -> list[dict[str, Any]]:
    reply = house.request("GET", f"{TALKS}/{talk}", **user.headers)
    assert reply.status_code == 200, reply.text
    assert reply.json()["message_count"] == len(reply.json()["messages"])
    return reply.json()["messages"]


async def say(line: Line, user: User, talk: str, message: str, on_busy: str = "wait") -> Answer:
    body = {"message": message, "conversation_id": talk, "on_busy": on_busy}
    return await line.ask("POST", PROMPT, body, **user.headers)


def turns(messages: list[dict[str, Any]]) -> list[str]:
    """The nonces of the turns, in order; each question is followed by its own answer."""
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    asked = [message["text"] for message in messages[::2]]
    for question, answer in zip(asked, messages[1::2], strict=True):
        assert question in answer["text"]
    return asked


async def test_prompts_of_two_processes_wait_for_each_other_and_all_are_kept(house: House) -> None:
    user = house.user()
    talk = begin(house, user)
    async with house.lines() as lines:

        async def talk_on(line: Line, name: str) -> list[str]:
            said = [f"nonce:{name}-{number}" for number in range(8)]
            for message in said:
                assert (await say(line, user, talk, message)).status == 200
            return said

        each = await asyncio.gather(*(talk_on(line, name) for line, name in zip(lines, "ab", strict=True)))
    kept = turns(said_in(house, user, talk))
    assert sorted(kept) == sorted([*each[0], *each[1]])
    for said in each:
        assert [message for message in kept if message in said] == said


async def test_a_prompt_that_may_not_wait_is_refused_by_the_other_process(house: House) -> None:
    user = house.user()
    talk = begin(house, user)
    before = house.provider.stats()["calls"]
    async with house.lines() as (line, other):
        house.provider.control(latency_s=1)
        try:
            running = asyncio.create_task(say(line, user, talk, "nonce:first"))
            async with asyncio.timeout(20):
                while house.provider.stats()["calls"] == before:
                    await asyncio.sleep(0.02)
            refused = await say(other, user, talk, "nonce:second", "reject")
            assert not running.done(), "the control: the first was still being answered"
        finally:
            house.provider.control(latency_s=0)
        assert (refused.status, refused.headers["retry-after"]) == (409, "1")
        assert (await running).status == 200
        assert (await say(other, user, talk, "nonce:third", "reject")).status == 200
    assert turns(said_in(house, user, talk)) == ["nonce:first", "nonce:third"]


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.soak)])
async def test_a_killed_worker_takes_no_acknowledged_message_with_it(
    house: House, kills: int, figures: Figures
) -> None:
    if house.has_redis:
        pytest.skip("a replica that is killed does not come back by itself")
    user = house.user()
    kept: dict[str, list[str]] = {}
    cut: Counter[str] = Counter()

    async def talk_on(line: Line, talk: str) -> None:
        said = kept.setdefault(talk, [])
        while True:
            message = f"nonce:{talk}-{len(said)}"
            try:
                answer = await say(line, user, talk, message)
            except (OSError, EOFError):
                # Stored or not, nobody was told.
                cut[talk] += 1
                return
            assert answer.status == 200
            said.append(message)

    for _ in range(kills):
        opened = await asyncio.gather(*(Line.open(house.urls[0]) for _ in range(20)))
        talks = [begin(house, user) for _ in opened]
        talking = [asyncio.create_task(talk_on(line, talk)) for line, talk in zip(opened, talks, strict=True)]
        async with asyncio.timeout(60):
            while sum(len(kept.get(talk, ())) for talk in talks) < 60:
                await asyncio.sleep(0.01)
        os.kill(house.worker_behind(opened[0]), signal.SIGKILL)
        await asyncio.wait(talking, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        for task in talking:
            task.cancel()
        told = await asyncio.gather(*talking, return_exceptions=True)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in told), told
        await asyncio.gather(*(line.aclose() for line in opened))
        for talk in talks:
            found = turns(said_in(house, user, talk))
            assert found[: len(kept[talk])] == kept[talk], "what was acknowledged is there, in order"
            assert len(found) <= len(kept[talk]) + 1
    assert sum(cut.values()) >= kills, "the control: some were cut in the middle"
    told = f"0 of {sum(map(len, kept.values()))}, {sum(cut.values())} cut"
    figures.note(f"{kills} workers killed in conversations", "0 acknowledged messages lost", told)


@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.soak)])
async def test_twenty_writers_on_each_process_are_never_told_that_the_database_is_locked(
    house: House, seconds: float, figures: Figures
) -> None:
    user = house.user()
    request = post(TALKS, b'{"title":"a title"}', **user.headers)
    counts: Counter[int] = Counter()
    async with asyncio.timeout(seconds + 60), asyncio.TaskGroup() as group:

        async def write(url: str) -> None:
            async with siege(url, request, clients=40 // len(house.urls), keep_alive=True) as book:
                await asyncio.sleep(seconds)
            assert book.lost == []
            counts.update(book.statuses)

        for url in house.urls:
            group.create_task(write(url))
    refused = counts.total() - counts[201]
    figures.note(
        f"2 x 20 writers for {seconds:g} s", "0 refused, never locked", f"{refused} of {counts.total()} refused"
    )
    assert set(counts) == {201}
    assert counts[201] > 40
    for server in house.servers:
        assert "locked" not in server.output()
        assert "database" not in server.output()
