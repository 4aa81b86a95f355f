"""What a stream does while nothing is said, while nobody reads, and when the server has to go."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.api.event_stream import EventStream
from app.api.v1.prompt_events import PromptEvents
from app.api.visit import open_visit
from app.core.open_streams import OpenStreams
from app.core.run import RunEvent, Started, TextDelta
from app.errors import ProviderBusy, Unavailable

STARTED = Started("run", "default", "offline", None, "MISS")


class Client:
    """The other end of one request, as an ASGI server shows it: reads or does not, and may leave."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.left = asyncio.Event()
        self.news = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        self.messages.append(message)
        self.news.set()

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.messages).decode()

    @property
    def status(self) -> int | None:
        return next((message["status"] for message in self.messages if "status" in message), None)

    @property
    def complete(self) -> bool:
        return bool(self.messages) and not self.messages[-1].get("more_body", False)

    async def until(self, claim: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not claim():
                self.news.clear()
                await self.news.wait()


class Run:
    """A run that says what it is told to say, and knows whether its listener is still there."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[RunEvent | Exception] = asyncio.Queue()
        self.listened = False
        self.abandoned = False

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncIterator[RunEvent]]:
        self.listened = True
        try:
            yield self._events()
        finally:
            self.abandoned = True

    async def _events(self) -> AsyncGenerator[RunEvent]:
        while True:
            event = await self.said.get()
            if isinstance(event, Exception):
                raise event
            yield event

    def say(self, *events: RunEvent | Exception) -> None:
        for event in events:
            self.said.put_nowait(event)


class Scene:
    def __init__(self, **options: float) -> None:
        self.run, self.client, self.streams = Run(), Client(), OpenStreams()
        wire = PromptEvents("request", lambda _: b"{}")
        response = EventStream(self.run.open(), wire, self.streams, **options)  # pyright: ignore[reportArgumentType]
        scope: dict[str, Any] = {"type": "http"}
        self.visit = open_visit(scope, None)
        self.serving = asyncio.create_task(
            response(scope, self.client.receive, self.client.send)  # pyright: ignore[reportArgumentType]
        )

    async def end(self) -> None:
        async with asyncio.timeout(5):
            await self.serving


async def test_silence_is_filled_with_comments_and_does_not_wait_for_the_first_word() -> None:
    scene = Scene(patience_s=0.01, heartbeat_s=0.01)
    scene.run.say(STARTED)
    await scene.client.until(lambda: scene.client.text.count(":\n\n") >= 3)
    assert scene.client.status == 200
    assert "event: start" in scene.client.text
    scene.run.say(ProviderBusy("the model provider is busy"))
    await scene.end()
    assert "event: error" in scene.client.text
    assert scene.client.complete


async def test_a_failure_before_the_first_word_is_raised_for_the_route_to_answer() -> None:
    scene = Scene()
    scene.run.say(STARTED, ProviderBusy("the model provider is busy"))
    with pytest.raises(ProviderBusy):
        await scene.end()
    assert scene.client.messages == []


async def test_a_client_that_leaves_ends_its_part_of_the_run() -> None:
    for first in ((STARTED,), (STARTED, TextDelta("hello"))):
        scene = Scene()
        scene.run.say(*first)
        if len(first) > 1:
            await scene.client.until(lambda client=scene.client: "hello" in client.text)
        else:
            while not scene.run.listened:
                await asyncio.sleep(0)
        scene.client.left.set()
        await scene.end()
        assert scene.run.abandoned
        assert scene.client.status == (200 if len(first) > 1 else 499)
        assert len(scene.streams) == 0


async def test_a_client_that_takes_nothing_is_cut() -> None:
    scene = Scene(stall_s=0.05, heartbeat_s=0.02, patience_s=0.02)
    scene.run.say(STARTED, TextDelta("hello"))
    await scene.client.until(lambda: "hello" in scene.client.text)
    scene.client.reads.clear()
    scene.run.say(TextDelta("world"))
    await scene.end()
    assert scene.run.abandoned
    assert not scene.client.complete


async def test_a_client_that_falls_too_far_behind_gets_an_error() -> None:
    scene = Scene(backlog_bytes=1000)
    scene.client.reads.clear()
    scene.run.say(STARTED, TextDelta("hello"))
    while scene.run.said.qsize():
        await asyncio.sleep(0)
    await asyncio.sleep(0.15)  # it reads slowly
    scene.client.reads.set()
    scene.run.say(TextDelta("x" * 2000))
    await scene.end()
    assert scene.client.complete
    assert "event: error" in scene.client.text
    assert "xxx" not in scene.client.text


async def test_whoever_reads_may_have_answers_of_any_size() -> None:
    scene = Scene(backlog_bytes=1000)
    scene.run.say(STARTED, TextDelta("z" * 200_000), TextDelta("y" * 2000))
    await scene.client.until(lambda: "yyy" in scene.client.text)
    assert scene.client.text.count("z") == 200_000
    assert max(len(message.get("body", b"")) for message in scene.client.messages) <= 64 * 1024
    scene.client.left.set()
    await scene.end()


async def test_a_server_that_has_to_go_tells_its_streams() -> None:
    talking, silent = Scene(), Scene()
    talking.run.say(STARTED, TextDelta("hello"))
    await talking.client.until(lambda: "hello" in talking.client.text)
    silent.run.say(STARTED)
    while not silent.run.listened:
        await asyncio.sleep(0)
    for scene in (talking, silent):
        scene.streams.drain()
    await talking.end()
    assert talking.client.complete
    assert "event: error" in talking.client.text
    assert "shutting down" in talking.client.text
    with pytest.raises(Unavailable, match="shutting down"):
        await silent.end()
    assert (talking.run.abandoned, silent.run.abandoned) == (True, True)


async def test_a_cancelled_request_is_cancelled_and_not_taken_for_a_client_that_left() -> None:
    scene = Scene()
    scene.run.say(STARTED, TextDelta("hello"))
    await scene.client.until(lambda: "hello" in scene.client.text)
    scene.serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scene.end()
    assert scene.run.abandoned
