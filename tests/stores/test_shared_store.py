"""What every shared store promises, tried on both homes: the files of one machine, and a real Redis."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from time import monotonic

import pytest

from app.stores import redis_link
from app.stores.local import LocalStore
from app.stores.protocol import PIECES_AT_ONCE, SharedStore
from app.stores.redis import RedisStore

ROOT = Path(__file__).parents[2]
Open = Callable[[], Awaitable[SharedStore]]


async def open_by_name(name: str) -> SharedStore:
    """One more store on the same data, as another process would open it."""
    if not name.startswith("redis:"):
        return LocalStore(Path(name))
    store = RedisStore(name)
    await store.start()
    return store


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a store does is the question here; a busy machine must not make a living Redis seem away."""
    monkeypatch.setattr(redis_link, "DEADLINE_S", 10.0)
    monkeypatch.setattr(redis_link, "_POOL_WAIT_S", 10.0)


@pytest.fixture(params=["local", pytest.param("redis", marks=pytest.mark.service)])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("redis_url") if request.param == "redis" else str(tmp_path / "shared")


@pytest.fixture
def open_store(name: str) -> Open:
    return lambda: open_by_name(name)


@pytest.fixture
async def store(open_store: Open) -> AsyncIterator[SharedStore]:
    opened = await open_store()
    await until_known(opened)
    yield opened
    await opened.aclose()


async def until_known(store: SharedStore) -> None:
    await until(lambda: store.generation("cache") is not None)


async def until(true: Callable[[], bool]) -> None:
    deadline = monotonic() + 10
    while not true():
        assert monotonic() < deadline, "it never came"
        await asyncio.sleep(0.005)


async def until_gone(store: SharedStore, key: bytes) -> None:
    deadline = monotonic() + 10
    while await store.get(key) is not None:
        assert monotonic() < deadline, "it never expired"
        await asyncio.sleep(0.005)


async def until_log_gone(store: SharedStore, key: bytes) -> None:
    deadline = monotonic() + 10
    while await store.read_on(key, at=0) is not None:
        assert monotonic() < deadline, "it never expired"
        await asyncio.sleep(0.005)


# Entries


async def test_an_entry_is_seen_by_everybody_until_it_is_deleted(store: SharedStore, open_store: Open) -> None:
    other = await open_store()
    assert await store.get(b"k") is None
    await store.put(b"k", b"\x00\xff value", ttl_s=60)
    assert await other.get(b"k") == b"\x00\xff value"
    await other.put(b"k", b"newer", ttl_s=60)
    assert await store.get(b"k") == b"newer"
    await store.delete(b"k")
    await store.delete(b"k")
    assert await other.get(b"k") is None
    await other.aclose()


async def test_an_entry_expires(store: SharedStore) -> None:
    await store.put(b"short", b"v", ttl_s=0.05)
    await store.put(b"long", b"v", ttl_s=60)
    await until_gone(store, b"short")
    assert await store.get(b"long") == b"v"


async def test_entries_outlive_whoever_stored_them(open_store: Open) -> None:
    first = await open_store()
    await first.put(b"k", b"v", ttl_s=60)
    await first.aclose()
    second = await open_store()
    assert await second.get(b"k") == b"v"
    await second.aclose()


async def test_many_puts_and_gets_at_once_never_mix(store: SharedStore) -> None:
    async def one(number: int) -> None:
        key = b"key %d" % number
        await store.put(key, b"value %d" % number * 50, ttl_s=60)
        assert await store.get(key) == b"value %d" % number * 50

    await asyncio.gather(*(one(number) for number in range(300)))


async def test_cancelled_calls_leave_nothing_to_others(store: SharedStore) -> None:
    for number in range(20):
        await store.put(b"%d" % number, b"value of %d" % number, ttl_s=60)
    answered = 0
    for round_ in range(40):
        asking = [asyncio.create_task(store.get(b"%d" % number)) for number in range(20)]
        for _ in range(round_ % 7):
            await asyncio.sleep(0)
        for number in range(0, 20, 2):
            asking[number].cancel()
        again = [asyncio.create_task(store.get(b"%d" % number)) for number in range(20)]
        for number, told in enumerate(await asyncio.gather(*asking, return_exceptions=True)):
            assert isinstance(told, asyncio.CancelledError) or told == b"value of %d" % number
        for number, told in enumerate(await asyncio.gather(*again)):
            assert told == b"value of %d" % number
            answered += 1
    assert answered == 800


# Logs


async def test_a_log_is_read_on_from_where_one_was(store: SharedStore, open_store: Open) -> None:
    other = await open_store()
    assert await other.read_on(b"log", at=0) is None
    assert await store.append(b"log", [b"one", b"\x00\xff two"], at=0, ttl_s=60)
    assert await other.read_on(b"log", at=0) == [b"one", b"\x00\xff two"]
    assert await other.read_on(b"log", at=2) == []
    assert await other.append(b"log", [b"three"], at=2, ttl_s=60)
    assert await store.read_on(b"log", at=1) == [b"\x00\xff two", b"three"]
    assert await store.read_on(b"another log", at=0) is None
    await other.aclose()


async def test_what_is_appended_again_is_there_once(store: SharedStore) -> None:
    assert await store.append(b"log", [b"0", b"1"], at=0, ttl_s=60)
    assert await store.append(b"log", [b"0", b"1"], at=0, ttl_s=60)
    assert await store.append(b"log", [b"1", b"2"], at=1, ttl_s=60)
    assert await store.append(b"log", [b"not this"], at=0, ttl_s=60)
    assert await store.read_on(b"log", at=0) == [b"0", b"1", b"2"]


async def test_a_log_has_no_gaps(store: SharedStore) -> None:
    assert not await store.append(b"log", [b"1"], at=1, ttl_s=60)
    assert await store.read_on(b"log", at=0) is None
    assert await store.append(b"log", [b"0"], at=0, ttl_s=60)
    assert not await store.append(b"log", [b"2"], at=2, ttl_s=60)
    assert not await store.append(b"log", [], at=2, ttl_s=60)
    assert await store.read_on(b"log", at=0) == [b"0"]


async def test_a_long_log_is_read_in_parts(store: SharedStore) -> None:
    pieces = [b"%d" % number for number in range(3 * PIECES_AT_ONCE + 1)]
    assert await store.append(b"log", pieces, at=0, ttl_s=60)
    read: list[bytes] = []
    while more := await store.read_on(b"log", at=len(read)):
        assert len(more) <= PIECES_AT_ONCE
        read += more
    assert read == pieces


async def test_a_log_lives_as_long_as_somebody_gives_a_sign_and_then_goes_as_a_whole(store: SharedStore) -> None:
    assert await store.append(b"log", [b"0"], at=0, ttl_s=0.05)
    assert await store.append(b"log", [], at=1, ttl_s=60)
    await asyncio.sleep(0.1)
    assert await store.read_on(b"log", at=0) == [b"0"]
    assert await store.append(b"log", [b"1"], at=1, ttl_s=0.05)
    await until_log_gone(store, b"log")
    assert not await store.append(b"log", [b"2"], at=2, ttl_s=60)
    assert await store.append(b"log", [b"anew"], at=0, ttl_s=60)
    assert await store.read_on(b"log", at=0) == [b"anew"]


async def test_a_log_that_nobody_began_cannot_be_kept_alive(store: SharedStore) -> None:
    assert await store.append(b"log", [], at=0, ttl_s=60)
    assert await store.read_on(b"log", at=0) is None


# Leases


async def test_of_fifty_who_claim_one_gets_it(store: SharedStore, open_store: Open) -> None:
    other = await open_store()
    claims = [(store, other)[number % 2].claim(b"lease", f"owner {number}", ttl_s=60) for number in range(50)]
    assert sum(await asyncio.gather(*claims)) == 1
    await other.aclose()


async def test_a_lease_is_renewed_and_given_back_by_its_owner_alone(store: SharedStore) -> None:
    assert await store.claim(b"lease", "ann", ttl_s=60)
    assert await store.claim(b"lease", "ann", ttl_s=60)
    assert not await store.claim(b"lease", "bob", ttl_s=60)
    await store.release(b"lease", "bob")
    assert not await store.claim(b"lease", "bob", ttl_s=60)
    await store.release(b"lease", "ann")
    assert await store.claim(b"lease", "bob", ttl_s=60)
    assert await store.claim(b"another", "ann", ttl_s=60)


async def test_a_lease_ends_by_itself(store: SharedStore) -> None:
    assert await store.claim(b"lease", "ann", ttl_s=0.05)
    deadline = monotonic() + 10
    while not await store.claim(b"lease", "bob", ttl_s=60):
        assert monotonic() < deadline
        await asyncio.sleep(0.005)


# Meters


async def test_of_400_at_once_exactly_100_are_allowed(store: SharedStore, open_store: Open) -> None:
    other = await open_store()
    takes = [(store, other)[number % 2].take(b"m", limit=100, window_s=3600) for number in range(400)]
    verdicts = await asyncio.gather(*takes)
    assert sum(verdict.allowed for verdict in verdicts) == 100
    refused = [verdict for verdict in verdicts if not verdict.allowed]
    assert {verdict.remaining for verdict in refused} == {0}
    assert all(30 < verdict.retry_after_s <= 36.001 and 3500 < verdict.reset_s <= 3600.001 for verdict in refused)
    assert (await other.take(b"another", limit=100, window_s=3600)).remaining == 99
    await other.aclose()


TAKE_200_TIMES = """
import asyncio, sys
from app.stores import redis_link
from tests.stores.test_shared_store import open_by_name

# As patient as the process of the tests.
redis_link.DEADLINE_S = redis_link._POOL_WAIT_S = 10.0

async def main():
    store = await open_by_name(sys.argv[1])
    sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
    verdicts = await asyncio.gather(*(store.take(b"m", limit=100, window_s=3600) for _ in range(200)))
    print(sum(verdict.allowed for verdict in verdicts))
    await store.aclose()

asyncio.run(main())
"""


def start(program: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_two_processes_take_exactly_what_there_is(name: str) -> None:
    workers = [start(TAKE_200_TIMES, name) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    told = [int(worker.communicate(timeout=30)[0]) for worker in workers]
    assert sum(told) == 100


async def test_a_forced_take_goes_into_debt_and_a_negative_one_gives_back(store: SharedStore) -> None:
    assert (await store.take(b"m", cost=90, limit=100, window_s=3600)).remaining == 10
    refused = await store.take(b"m", cost=20, limit=100, window_s=3600)
    assert (refused.allowed, refused.remaining) == (False, 10)
    assert refused.retry_after_s == pytest.approx(360, abs=5)
    forced = await store.take(b"m", cost=60, limit=100, window_s=3600, force=True)
    assert (forced.allowed, forced.remaining) == (True, 0)
    assert forced.reset_s == pytest.approx(5400, abs=5)
    assert (await store.take(b"m", limit=100, window_s=3600)).retry_after_s == pytest.approx(1836, abs=5)
    assert (await store.take(b"m", cost=-60, limit=100, window_s=3600)).remaining == 10
    assert (await store.take(b"m", cost=-1000, limit=100, window_s=3600)).remaining == 100
    assert (await store.take(b"m", cost=100, limit=100, window_s=3600)).allowed


async def test_a_meter_refills(store: SharedStore) -> None:
    assert (await store.take(b"m", cost=10, limit=10, window_s=0.5)).allowed
    deadline = monotonic() + 10
    while not (await store.take(b"m", limit=10, window_s=0.5)).allowed:
        assert monotonic() < deadline
        await asyncio.sleep(0.005)


# Generations


async def test_a_bump_is_known_to_all_when_it_returns(store: SharedStore, open_store: Open) -> None:
    other = await open_store()
    await until_known(other)
    for counter in ("cache", "credentials", "agents", "cache:an agent"):
        before = other.generation(counter)
        assert store.generation(counter) == before
        number = await store.bump(counter)
        assert number == store.generation(counter)
        # What is not known is not trusted; both are as good.
        assert other.generation(counter) in (number, None)
        assert number != before
    await other.aclose()


async def test_a_generation_counts_alone(store: SharedStore) -> None:
    before = store.generation("credentials")
    await store.bump("cache")
    await until_known(store)
    assert store.generation("credentials") == before


# Posts


async def test_posts_are_what_members_say_now(store: SharedStore, open_store: Open) -> None:
    other = await open_store()
    assert await store.posts("numbers") == {}
    await store.post("numbers", "worker 1", b"one", ttl_s=60)
    await other.post("numbers", "worker 2", b"two", ttl_s=60)
    await other.post("something else", "worker 3", b"three", ttl_s=60)
    await store.post("numbers", "worker 1", b"newer", ttl_s=60)
    await store.post("numbers", "worker 4", b"short", ttl_s=0.05)
    deadline = monotonic() + 10
    while len(told := await store.posts("numbers")) > 2:
        assert monotonic() < deadline
        await asyncio.sleep(0.005)
    assert told == {"worker 1": b"newer", "worker 2": b"two"}
    await other.aclose()


# Life


async def test_opening_and_closing_fifty_times_leaks_no_file(open_store: Open) -> None:
    async def once() -> None:
        store = await open_store()
        await until_known(store)
        await store.put(b"k", b"v", ttl_s=60)
        await store.take(b"m", limit=10, window_s=60)
        await store.claim(b"l", "o", ttl_s=60)
        await store.ping()
        await store.aclose()

    await once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        await once()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_it_counts_what_it_is_asked(store: SharedStore) -> None:
    await store.get(b"k")
    numbers = store.numbers()
    assert numbers.state == "up"
    assert numbers.calls >= 1
    assert (numbers.failures, numbers.refused) == (0, 0)


async def test_what_is_taken_at_once_is_taken_from_the_same_meter(store: SharedStore) -> None:
    at_once = [store.take_at_once(b"at once", cost=1, limit=5, window_s=60.0) for _ in range(3)]
    if store.kind == "redis":
        assert at_once == [None] * 3
        assert (await store.take(b"at once", limit=5, window_s=60.0)).remaining == 4
        return
    assert [verdict and verdict.remaining for verdict in at_once] == [4, 3, 2]
    assert (await store.take(b"at once", cost=2, limit=5, window_s=60.0)).remaining == 0
    refused = store.take_at_once(b"at once", cost=1, limit=5, window_s=60.0)
    assert refused is not None
    assert not refused.allowed
