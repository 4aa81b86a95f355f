"""A stream that another process of the house makes: heard from its beginning, while it is made, by whoever may."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.siege import Line, Stream
from tests.workers.conftest import PROMPT, House, User

CHAT = "/v1/chat/completions"
ROUTES = {PROMPT: "prompt", CHAT: "chat"}
STOP_AT = 10
"""Pieces of the answer, of 20, after which the provider waits for the test."""


@pytest.fixture(autouse=True)
def slow(house: House) -> Iterator[None]:
    """The provider stops in the middle of each stream until `go_on`."""
    house.provider.control(chunk_gap_s=0.001, stop_at=STOP_AT)
    yield
    house.provider.control(chunk_gap_s=0, stop_at=None)


def go_on(house: House) -> None:
    house.provider.control(stop_at=None)


async def ask(line: Line, user: User, path: str, message: str) -> Stream:
    said = {"message": message} if path == PROMPT else {"messages": [{"role": "user", "content": message}]}
    model = {} if path == PROMPT else {"model": "default"}
    return await line.stream("POST", path, {**said, **model, "stream": True}, **user.headers)


def events(stream: Stream) -> list[Any]:
    lines = [line[6:] for line in stream.body.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text(stream: Stream) -> str:
    """What was said so far, in the words of either route."""
    told: list[str] = []
    for event in events(stream):
        if "choices" in event:
            told += [choice["delta"].get("content") or "" for choice in event["choices"]]
        elif "text" in event:
            told.append(event["text"])
    return "".join(told)


def is_complete(stream: Stream) -> bool:
    return stream.ended and (b"event: done\n" in stream.body or b"data: [DONE]\n" in stream.body)


async def hear(stream: Stream, said: str) -> None:
    """Read until all of `said` was heard."""
    while text(stream) != said:
        assert said.startswith(text(stream))
        assert await stream.more(), stream.body


async def begin(house: House, line: Line, user: User, path: str, message: str) -> tuple[Stream, str]:
    """A stream that stands still in its middle, and what it says until there."""
    before = house.provider.stats()["calls"]
    stream = await ask(line, user, path, message)
    while house.provider.stats()["calls"] == before:
        await asyncio.sleep(0.01)
    whole = f"This answer belongs to {message} and to nobody else, says the fake provider."
    said = whole[: STOP_AT * len(whole) // 20]
    await hear(stream, said)
    return stream, said


async def join(line: Line, user: User, path: str, message: str, said: str) -> Stream:
    """The stream of one more who asks, when all of `said` was heard."""
    stream = await ask(line, user, path, message)
    await hear(stream, said)
    return stream


async def finish(*streams: Stream) -> None:
    for stream in streams:
        while await stream.more():
            pass


@pytest.mark.parametrize("path", ROUTES, ids=ROUTES.values())
async def test_a_late_one_in_another_process_hears_the_beginning_and_follows(house: House, path: str) -> None:
    user, message = house.user(), f"nonce:late-{ROUTES[path]}"
    before = house.provider.stats()["calls"]
    async with house.lines() as (one, other):
        first, said = await begin(house, one, user, path, message)
        second = await join(other, user, path, message, said)
        assert house.provider.stats()["open_streams"] == 1, "the run has not ended"
        go_on(house)
        await finish(first, second)
    assert is_complete(first)
    assert is_complete(second)
    assert text(first) == text(second)
    assert text(first).startswith(said)
    assert text(first) != said
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("MISS", "COALESCED")
    assert house.provider.stats()["calls"] == before + 1


async def test_both_wires_hear_one_run(house: House) -> None:
    user, message = house.user(), "nonce:wires"
    before = house.provider.stats()["calls"]
    async with house.lines() as (one, other):
        first, said = await begin(house, one, user, PROMPT, message)
        second = await join(other, user, CHAT, message, said)
        go_on(house)
        await finish(first, second)
    assert is_complete(second)
    assert text(first) == text(second)
    assert house.provider.stats()["calls"] == before + 1


async def test_whoever_began_may_leave(house: House) -> None:
    user, message = house.user(), "nonce:leaver"
    before = house.provider.stats()
    async with house.lines() as (one, other):
        _, said = await begin(house, one, user, PROMPT, message)
        second = await join(other, user, PROMPT, message, said)
        await one.aclose()
        # Somebody new in the process that runs it: it still runs.
        async with house.lines() as lines:
            (back,) = (line for line in lines if line.worker == one.worker)
            third = await join(back, user, PROMPT, message, said)
            go_on(house)
            await finish(second, third)
    assert is_complete(second)
    assert text(second) == text(third)
    after = house.provider.stats()
    assert (after["calls"], after["disconnects"]) == (before["calls"] + 1, before["disconnects"])


async def test_another_user_hears_nothing_of_it(house: House) -> None:
    anna, ben, message = house.user(), house.user(), "nonce:private"
    before = house.provider.stats()["calls"]
    async with house.lines() as (one, other):
        first, said = await begin(house, one, anna, PROMPT, message)
        friend = await join(other, anna, PROMPT, message, said)
        async with house.lines() as lines:
            (beside,) = (line for line in lines if line.worker == other.worker)
            second, _ = await begin(house, beside, ben, PROMPT, message)
            go_on(house)
            await finish(first, friend, second)
    assert (friend.headers["x-cache"], second.headers["x-cache"]) == ("COALESCED", "MISS")
    assert house.provider.stats()["calls"] == before + 2


@pytest.mark.parametrize("path", ROUTES, ids=ROUTES.values())
async def test_where_the_process_is_killed_whoever_heard_it_gets_an_error(house: House, path: str) -> None:
    if house.has_redis:
        pytest.skip("a replica that is killed does not come back by itself; see tests/replicas")
    user, message = house.user(), f"nonce:killed-{ROUTES[path]}"
    async with house.lines() as (one, other):
        first, said = await begin(house, one, user, path, message)
        second = await join(other, user, path, message, said)
        os.kill(one.worker, signal.SIGKILL)
        with pytest.raises((OSError, EOFError)):
            await finish(first)
        go_on(house)
        await finish(second)
    assert second.ended
    assert not is_complete(second)
    assert text(second) == said
    last = events(second)[-1]
    assert (last["type"] if path == PROMPT else last["error"]["code"]).endswith("unavailable"), last
    before = house.provider.stats()["calls"]
    again = house.request("POST", PROMPT, {"message": message}, **user.headers)
    assert again.headers["x-cache"] == "MISS"
    assert house.provider.stats()["calls"] == before + 1
