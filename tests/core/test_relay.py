"""A run of one process, heard in another while it goes on: from its beginning or not at all, and never two as one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.core import relay
from app.core.cache_key import CacheKey, cache_key
from app.core.cache_service import Began, CacheService
from app.core.flights import Tell
from app.core.run import Answer, RunEvent, TextDelta, ToolFinished, ToolStarted, Usage
from app.errors import ProviderFailed, StoreUnavailable, Unavailable
from app.stores import redis, redis_link
from app.stores.local import LocalStore
from tests.core.conftest import OpenStore, cache_on


def key(scope: str = "user:1") -> CacheKey:
    return cache_key(scope=scope, agent="default", revision="1", models=["m"], instructions=None, prompt="Hi")


class Model:
    """Says what the test puts in, and how it ends; counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.storable = True
        self._next: asyncio.Queue[RunEvent | Exception | None] = asyncio.Queue()

    def say(self, *events: RunEvent | str) -> None:
        for event in events:
            self._next.put_nowait(TextDelta(event) if isinstance(event, str) else event)

    def end(self, error: Exception | None = None) -> None:
        self._next.put_nowait(error)

    async def run(self, tell: Tell | None, began: Began) -> Answer:
        self.calls += 1
        number = self.calls
        began()
        spoken: list[str] = []
        try:
            while (event := await self._next.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, TextDelta):
                    spoken.append(event.text)
                if tell is not None:
                    tell(event)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Answer(
            id=f"run-{number}",
            output="".join(spoken),
            agent="default",
            model="m",
            usage=Usage(3, 2, 1),
            cost_usd=None,
            model_s=0.5,
            storable=self.storable,
        )


@dataclass
class Listener:
    """A caller who asks for a stream, and what it has heard so far."""

    cache: CacheService
    model: Model
    key: CacheKey
    heard: list[RunEvent] = field(default_factory=list[RunEvent])
    state: str = ""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> Answer:
        async with self.cache.open_stream(self.key, self.model.run, mode="use") as telling:
            self.state = telling.state
            async for event in telling.events():
                if isinstance(event, Answer):
                    return event
                self.heard.append(event)
                self.news.set()
        raise AssertionError("a stream without an end")

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.heard if isinstance(event, TextDelta))

    async def hears(self, text: str) -> None:
        """Wait until exactly `text` was heard, while the run goes on."""
        async with asyncio.timeout(20):
            while self.text != text:
                assert text.startswith(self.text), self.text
                if self.task.done():
                    raise AssertionError(f"it ended before that: {self.task.result()}")
                self.news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await self.news.wait()

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def begin(cache: CacheService, model: Model, text: str) -> Listener:
    """Whoever asks first, when `text` was said and heard; then the run stands still."""
    model.say(text)
    return await join(cache, model, text)


async def join(cache: CacheService, model: Model, text: str) -> Listener:
    """One more who asks, when exactly `text` was heard."""
    listener = Listener(cache, model, key())
    await listener.hears(text)
    return listener


Open = Callable[[], Awaitable[CacheService]]


@pytest.fixture
async def open_cache(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Opens the cache of one more process, on one machine or on many."""
    # What is heard is the question here; a busy machine must not make a living Redis seem away.
    monkeypatch.setattr(redis_link, "DEADLINE_S", 10.0)
    monkeypatch.setattr(redis, "LEASE_S", 2.0)
    async with AsyncExitStack() as stack:

        async def open_one() -> CacheService:
            cache = cache_on(await open_store())
            stack.push_async_callback(cache.aclose)
            return cache

        yield open_one


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


async def test_a_late_one_elsewhere_hears_what_was_said_and_then_follows(open_cache: Open) -> None:
    model, one, other = Model(), await open_cache(), await open_cache()
    first = Listener(one, model, key())
    model.say("To ", "be")
    await first.hears("To be")
    second = await join(other, model, "To be")
    model.say(ToolStarted("c", "search"), ToolFinished("c", "search", False), " or ")
    await second.hears("To be or ")
    third = await join(await open_cache(), model, "To be or ")
    model.say("not")
    await asyncio.gather(*(each.hears("To be or not") for each in (first, second, third)))
    model.end()
    answers = [await each.task for each in (first, second, third)]
    assert model.calls == 1
    assert [answer.output for answer in answers] == ["To be or not"] * 3
    assert [answer.usage for answer in answers] == [Usage(3, 2, 1)] * 3
    assert [answer.cache for answer in answers] == ["MISS", "COALESCED", "COALESCED"]
    assert [each.state for each in (first, second, third)] == ["MISS", "COALESCED", "COALESCED"]
    assert [event for event in second.heard if not isinstance(event, TextDelta)] == [
        ToolStarted("c", "search"),
        ToolFinished("c", "search", False),
    ]
    # What was kept in the end is near in all of them.
    for cache in (one, other):
        assert (await cache.get_or_run(key(), model.run, mode="use")).cache == "HIT"
        assert len(cache.memory) == 1
    assert other.counts.coalesced == 1
    assert (model.calls, one.waiting, other.waiting) == (1, 0, 0)


async def test_all_who_ask_in_the_other_process_hear_it_there(open_cache: Open) -> None:
    model, one, other = Model(), await open_cache(), await open_cache()
    _first = await begin(one, model, "To be")
    crowd = [Listener(other, model, key()) for _ in range(5)]
    plain = asyncio.create_task(other.get_or_run(key(), model.run, mode="use"))
    await asyncio.gather(*(each.hears("To be") for each in crowd))
    model.end()
    assert {(await each.task).cache for each in crowd} == {"COALESCED"}
    assert (await plain).output == "To be"
    assert (model.calls, other.counts.coalesced) == (1, 6)


async def test_a_long_text_arrives_whole(open_cache: Open) -> None:
    text = "äöü€ " * 20_000
    model, one, other = Model(), await open_cache(), await open_cache()
    first = await begin(one, model, text)
    second = await join(other, model, text)
    for number in range(300):
        model.say(f"{number} ")
        await asyncio.sleep(0)
    model.end()
    assert (await second.task).output == (await first.task).output == second.text


async def test_whoever_began_may_leave_and_the_others_hear_the_rest(open_cache: Open) -> None:
    model, one, other = Model(), await open_cache(), await open_cache()
    first = await begin(one, model, "To be")
    second = await join(other, model, "To be")
    await first.leave()
    model.say(" or not")
    await second.hears("To be or not")
    model.end()
    assert (await second.task).output == "To be or not"
    assert (model.calls, model.cancelled) == (1, 0)
    await until(lambda: not one.waiting)


async def test_a_run_that_nobody_hears_any_more_ends(open_cache: Open) -> None:
    model, one, other = Model(), await open_cache(), await open_cache()
    first = await begin(one, model, "To be")
    second = await join(other, model, "To be")
    await first.leave()
    await second.leave()
    await until(lambda: model.cancelled)
    assert (model.calls, model.cancelled, one.waiting) == (1, 1, 0)


async def test_whoever_comes_after_the_listeners_left_is_heard_too(open_cache: Open) -> None:
    model, one, other = Model(), await open_cache(), await open_cache()
    first = await begin(one, model, "To be")
    second = await join(other, model, "To be")
    await second.leave()
    await until(lambda: one.waiting == 1)
    model.say(" or")
    third = await join(other, model, "To be or")
    model.end()
    assert (await third.task).output == (await first.task).output == "To be or"


async def test_a_run_that_fails_in_the_middle_fails_for_all_and_nothing_is_kept(open_cache: Open) -> None:
    model, one, other = Model(), await open_cache(), await open_cache()
    first = await begin(one, model, "To be")
    second = await join(other, model, "To be")
    model.end(ProviderFailed("no"))
    with pytest.raises(ProviderFailed):
        await first.task
    with pytest.raises(Unavailable, match="ended without the rest"):
        await second.task
    assert (second.text, model.calls) == ("To be", 1)
    again = Listener(other, model, key())
    model.say("That is")
    model.end()
    assert (await again.task).cache == "MISS"
    assert again.text == "That is"


async def test_where_nothing_was_said_before_the_failure_the_other_asks_itself(open_cache: Open) -> None:
    model, one, other = Model(), await open_cache(), await open_cache()
    first = Listener(one, model, key())
    await until(lambda: model.calls)
    second = Listener(other, model, key())
    await until(lambda: one.waiting == 2)  # it is heard of
    model.end(ProviderFailed("no"))
    with pytest.raises(ProviderFailed):
        await first.task
    model.say("That is")
    model.end()
    assert (await second.task).cache == "MISS"
    assert (second.text, model.calls) == ("That is", 2)


async def test_an_answer_that_is_not_kept_is_heard_by_who_was_there_and_by_nobody_after(open_cache: Open) -> None:
    model, one, other = Model(), await open_cache(), await open_cache()
    model.storable = False
    first = await begin(one, model, "To be")
    second = await join(other, model, "To be")
    model.end()
    assert (await second.task).output == (await first.task).output
    assert model.calls == 1
    third = Listener(other, model, key())
    model.say("Anew")
    model.end()
    assert (await third.task).output == third.text == "Anew"
    assert model.calls == 2


async def test_another_scope_hears_nothing_even_under_a_forged_digest(open_cache: Open) -> None:
    model, one, other = Model(), await open_cache(), await open_cache()
    anna, ben = key("user:1"), key("user:2")
    forged = CacheKey(anna.digest, ben.scope, ben.agent, ben.written)
    first = Listener(one, model, anna)
    model.say("a secret")
    await first.hears("a secret")
    friend, thief = Listener(await open_cache(), model, anna), Listener(other, model, forged)
    await friend.hears("a secret")
    await until(lambda: other.waiting)
    model.say(" of two")
    await friend.hears("a secret of two")
    assert thief.heard == []
    model.end()
    assert (await friend.task).output == "a secret of two"
    model.say("nothing")
    model.end()
    assert (await thief.task).output == thief.text == "nothing"
    assert model.calls == 2


async def test_whoever_asks_after_a_clear_does_not_hear_a_run_from_before(open_cache: Open) -> None:
    model, one, other = Model(), await open_cache(), await open_cache()
    first, friend = Listener(one, model, key()), Listener(await open_cache(), model, key())
    model.say("old")
    await asyncio.gather(first.hears("old"), friend.hears("old"))
    await other.clear()
    second = Listener(other, model, key())
    model.say(" news")
    await asyncio.gather(first.hears("old news"), friend.hears("old news"))
    assert second.heard == []
    model.end()
    await asyncio.gather(first.task, friend.task)
    model.say("new")
    model.end()
    assert (await second.task).output == second.text == "new"


async def test_a_run_that_says_too_much_is_given_up_by_the_others_alone(
    open_cache: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_MOST_BYTES", 100)
    model, one, other = Model(), await open_cache(), await open_cache()
    first = await begin(one, model, "short")
    second = await join(other, model, "short")
    model.say("x" * 100)
    with pytest.raises(Unavailable):
        await second.task
    third = Listener(other, model, key())  # waits for the end as without a relay
    model.end()
    answers = [await first.task, await third.task]
    assert [answer.output for answer in answers] == ["short" + "x" * 100] * 2
    assert (third.state, model.calls) == ("HIT", 1)


# A store that fails. The local one, since it is told to.


class Failing:
    """Makes methods of a store fail: all that are named in `away`, and every third call of those in `shaky`."""

    def __init__(self, store: LocalStore) -> None:
        self.away: set[str] = set()
        self.shaky: set[str] = set()
        self.calls: dict[str, int] = {}
        for name in ("get", "put", "delete", "post", "posts", "append", "read_on"):
            setattr(store, name, self._wrapped(name, getattr(store, name)))

    def _wrapped(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:
            count = self.calls[name] = self.calls.get(name, 0) + 1
            if name in self.away:
                raise StoreUnavailable("away")
            done = await method(*arguments, **options)
            if name in self.shaky and count % 3 == 1:
                raise StoreUnavailable("it was done, but nobody heard of it")
            return done

        return call


@pytest.fixture
async def failing_pair(tmp_path: Path) -> AsyncIterator[tuple[CacheService, Failing, CacheService, Failing]]:
    stores = [LocalStore(tmp_path / "shared") for _ in range(2)]
    one, other = (cache_on(store) for store in stores)
    yield one, Failing(stores[0]), other, Failing(stores[1])
    for cache in (one, other):
        await cache.aclose()
    for store in stores:
        await store.aclose()


Pair = tuple[CacheService, Failing, CacheService, Failing]


async def test_a_stream_that_nobody_joins_says_nothing_to_the_store(failing_pair: Pair) -> None:
    one, store, _, _ = failing_pair
    model = Model()
    first = await begin(one, model, "To be")
    # Long enough for whoever looks for listeners to look.
    await asyncio.sleep(0.2)
    model.end()
    await first.task
    assert store.calls == {"get": 1, "put": 1}


async def test_a_shaky_store_neither_loses_nor_repeats_a_word(failing_pair: Pair) -> None:
    one, speaking, other, listening = failing_pair
    speaking.shaky = {"append", "posts", "put"}
    listening.shaky = {"read_on", "post", "get"}
    model = Model()
    _first = await begin(one, model, "0 ")
    second = await join(other, model, "0 ")
    text = "0 "
    for number in range(1, 8):
        text += f"{number} "
        model.say(f"{number} ")
        await second.hears(text)
    model.end()
    assert (await second.task).output == text == second.text
    assert model.calls == 1


async def test_where_the_way_breaks_off_the_stream_ends_in_an_error(
    failing_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_SILENCE_S", 0.5)
    monkeypatch.setattr(relay, "_SIGN_EVERY_S", 0.1)
    one, speaking, other, _ = failing_pair
    model = Model()
    first = await begin(one, model, "To be")
    second = await join(other, model, "To be")
    speaking.away = {"append"}
    with pytest.raises(Unavailable):
        await second.task
    assert second.text == "To be"
    model.say(" or not")
    model.end()
    assert (await first.task).output == "To be or not"
    assert model.calls == 1


async def test_what_is_kept_is_the_rest_where_the_way_breaks_off_at_the_end(
    failing_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_SILENCE_S", 0.5)
    monkeypatch.setattr(relay, "_SIGN_EVERY_S", 0.1)
    monkeypatch.setattr(relay, "_FAREWELL_S", 0.1)
    one, speaking, other, _ = failing_pair
    model = Model()
    first = await begin(one, model, "To be")
    second = await join(other, model, "To be")
    speaking.away = {"append"}
    model.say(" or not")
    model.end()
    assert (await first.task).output == (await second.task).output == second.text == "To be or not"


@pytest.mark.parametrize("away", [{"post"}, {"read_on"}, {"append"}, {"posts"}])
async def test_where_the_way_is_never_there_one_waits_for_the_end(failing_pair: Pair, away: set[str]) -> None:
    one, speaking, other, listening = failing_pair
    speaking.away = listening.away = away
    model = Model()
    first = await begin(one, model, "To be")
    second = Listener(other, model, key())
    await until(lambda: other.waiting)
    await asyncio.sleep(0.3)
    assert second.heard == []
    model.end()
    assert (await second.task).output == (await first.task).output == second.text == "To be"
    assert (second.state, model.calls) == ("HIT", 1)
