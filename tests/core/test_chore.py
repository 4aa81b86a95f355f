"""Work that comes round: by one of all processes, by another when that has gone, and again after a failure."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from app.core.chore import Chore
from app.errors import DatabaseUnavailable
from app.stores.local import LocalStore
from tests.application import open_application


class Process:
    """One that has the chore, and a store of its own on a folder."""

    def __init__(self, folder: Path, *, late_s: float) -> None:
        self.rounds = 0
        self.failing = False
        self.store = LocalStore(folder)
        self.chore = Chore("sweep", self.work, every_s=0.01, claim=self.store.claim, late_s=late_s, jitter=lambda: 0.5)
        self.chore.start()

    async def work(self) -> None:
        self.rounds += 1
        if self.failing:
            raise DatabaseUnavailable("the database is away")


Begin = Callable[..., Process]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    """Begins a process whose store is in the folder of this name."""
    async with AsyncExitStack() as stack:

        def begin_one(folder: str = "shared", *, late_s: float = 15.0) -> Process:
            process = Process(tmp_path / folder, late_s=late_s)
            stack.push_async_callback(process.store.aclose)
            stack.push_async_callback(process.chore.aclose)
            return process

        yield begin_one


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not happened():
            await asyncio.sleep(0.01)


async def test_one_of_all_processes_does_it(begin: Begin) -> None:
    one, other = begin(), begin()
    await until(lambda: max(one.rounds, other.rounds) >= 10)
    assert min(one.rounds, other.rounds) == 0


async def test_processes_that_share_nothing_all_do_it(begin: Begin) -> None:
    # The control of the test above.
    one, other = begin("one"), begin("other")
    await until(lambda: min(one.rounds, other.rounds) >= 10)


async def test_another_process_takes_over_from_one_that_has_gone(begin: Begin) -> None:
    one = begin(late_s=0.2)
    await until(lambda: one.rounds > 0)
    other = begin()
    await one.chore.aclose()
    rounds = one.rounds
    await until(lambda: other.rounds > 0)
    assert one.rounds == rounds


async def test_a_round_that_fails_is_made_up_for_by_the_next(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    process = begin()
    process.failing = True
    await until(lambda: process.rounds >= 3)
    assert "sweep: not now: the database is away" in caplog.messages


async def test_an_application_has_the_chores_of_its_database(tmp_path: Path) -> None:
    async with open_application(tmp_path / "data"):
        tasks = {task.get_name() for task in asyncio.all_tasks()}
    assert {"conversation sweep", "idempotency clean-up"} <= tasks
