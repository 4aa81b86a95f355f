"""Who lives signs in; the runs of the others are ended, once, and by whoever is there."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import select, text, update

from app.core.roll_call import RollCall
from app.db.async_session import Database
from app.db.models import workers
from app.db.runs import RunRow, get_run, list_runs, save_runs
from tests.db.test_runs import DONE, RUN

HOUR = timedelta(hours=1)


class Clock:
    """What the workers take for the time that has passed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def worker(database: Database, name: str, clock: Clock | None = None) -> RollCall:
    return RollCall(database, worker=name, clock=clock or Clock())


async def age(database: Database, *names: str) -> None:
    """Let the last sign of life of these be an hour ago."""
    async with database.write() as session:
        for name, seen_at in (await session.execute(select(workers))).all():
            if name in names:
                await session.execute(update(workers).where(workers.c.id == name).values(seen_at=seen_at - HOUR))


async def begin(database: Database, *names: str) -> None:
    async with database.write() as session:
        await save_runs(session, [replace(RUN, id=f"run of {name}", worker=name) for name in names])


async def present(database: Database) -> set[str]:
    async with database.read() as session:
        return set((await session.execute(select(workers.c.id))).scalars())


async def running(database: Database) -> set[str]:
    async with database.read() as session:
        return {run.worker for run in (await list_runs(session, user_id=None, status="running")).rows}


async def run_of(database: Database, name: str) -> RunRow:
    async with database.read() as session:
        run = await get_run(session, f"run of {name}", user_id=None)
    assert run is not None
    return run


async def test_the_runs_of_a_silent_worker_are_ended_once_by_one_of_the_others(database: Database) -> None:
    silent, first, second = (worker(database, name) for name in ("silent", "first", "second"))
    for everybody in (silent, first, second):
        await everybody.call()
    await begin(database, "silent", "first", "second")
    assert await asyncio.gather(first.call(), second.call()) == [0, 0]
    await age(database, "silent")
    assert sum(await asyncio.gather(first.call(), second.call())) == 1
    assert await running(database) == {"first", "second"}
    assert (await run_of(database, "silent")).error_code == "interrupted"
    assert await first.call() + await second.call() == 0


async def test_one_whose_death_is_known_is_not_waited_for(database: Database) -> None:
    dead, other = worker(database, "dead"), worker(database, "other")
    await dead.call()
    await begin(database, "dead", "other")
    assert await other.call() == 0
    other.bury(["dead"])
    assert await other.call() == 1
    assert await running(database) == {"other"}


async def test_who_was_silent_comes_back_and_its_run_ends_as_it_ends(database: Database) -> None:
    silent, other = worker(database, "silent"), worker(database, "other")
    await silent.call()
    await begin(database, "silent")
    other.bury(["silent"])
    assert await other.call() == 1
    await silent.call()
    async with database.write() as session:
        await save_runs(session, [replace(DONE, id="run of silent", worker="silent")])
    assert await other.call() == 0
    assert (await run_of(database, "silent")).status == "done"


async def test_after_an_outage_for_all_nobody_is_taken_for_dead(database: Database) -> None:
    clock = Clock()
    first, second = worker(database, "first", clock), worker(database, "second", clock)
    await first.call()
    await second.call()
    await begin(database, "first", "second")
    clock.now += HOUR.total_seconds()
    await age(database, "first", "second")
    assert await first.call() == 0
    assert await running(database) == {"first", "second"}
    assert await first.call() == 1, "the control: who does not come back is dead"


async def test_who_leaves_in_order_leaves_nothing_running(database: Database) -> None:
    leaving, other = worker(database, "leaving"), worker(database, "other")
    await other.call()
    await leaving.call()
    await begin(database, "leaving", "other")
    await leaving.aclose()
    assert await running(database) == {"other"}


async def test_the_call_goes_on_by_itself_and_hears_of_deaths_at_once(database: Database) -> None:
    dead = worker(database, "dead")
    await dead.call()
    await begin(database, "dead")
    other = RollCall(database, worker="other", every_s=60)
    other.start()
    other.bury(["dead"])
    async with asyncio.timeout(10):
        while await running(database):
            await asyncio.sleep(0.01)
    await other.aclose()


async def test_a_database_without_its_tables_ends_neither_the_call_nor_the_leaving(database: Database) -> None:
    async with database.write() as session:
        await session.execute(text("ALTER TABLE workers RENAME TO hidden"))
    leaving = RollCall(database, worker="leaving", every_s=0.01)
    leaving.start()
    await asyncio.sleep(0.05)
    async with database.write() as session:
        await session.execute(text("ALTER TABLE hidden RENAME TO workers"))
    async with asyncio.timeout(10):
        while "leaving" not in await present(database):
            await asyncio.sleep(0.01)
    async with database.write() as session:
        await session.execute(text("ALTER TABLE workers RENAME TO hidden"))
    await leaving.aclose()
    async with database.write() as session:
        await session.execute(text("ALTER TABLE hidden RENAME TO workers"))
    assert await present(database) == {"leaving"}
