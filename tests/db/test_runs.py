"""The record of runs."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

from sqlalchemy import func, select

from app.db.async_session import Database
from app.db.models import runs
from app.db.runs import RunRow, get_run, list_runs, mark_interrupted, save_runs
from app.db.workers import sign_in, strike_off

START = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
RUN = RunRow(
    id="run",
    user_id="ada",
    agent="default",
    model="offline",
    worker="host:1",
    status="running",
    started_at=START,
)
DONE = replace(
    RUN,
    status="done",
    input_tokens=12,
    output_tokens=34,
    requests=1,
    cost_usd=Decimal("0.000000123"),
    finished_at=START + timedelta(seconds=1),
    duration_ms=1000.5,
    model_ms=900.25,
)


async def test_a_run_comes_back_as_it_was_saved(database: Database) -> None:
    async with database.write() as session:
        await save_runs(session, [DONE, replace(RUN, id="other")])
    async with database.read() as session:
        assert await get_run(session, "run", user_id="ada") == DONE
        assert await get_run(session, "other", user_id=None) == replace(RUN, id="other")
        assert await get_run(session, "run", user_id="bob") is None


async def test_an_outcome_is_written_once_and_may_be_repeated(database: Database) -> None:
    for rows in ([RUN], [DONE], [DONE], [RUN], [replace(DONE, status="failed")], []):
        async with database.write() as session:
            await save_runs(session, rows)
    async with database.read() as session:
        assert await get_run(session, "run", user_id="ada") == DONE


async def test_money_is_exact_one_by_one_and_in_sums(database: Database) -> None:
    costs = [Decimal("0.000000001"), Decimal("0.1"), Decimal("0.2"), Decimal("999999999.123456789"), None]
    async with database.write() as session:
        await save_runs(session, [replace(DONE, id=f"run {n}", cost_usd=cost) for n, cost in enumerate(costs)])
    async with database.read() as session:
        kept = [run.cost_usd for run in (await list_runs(session, user_id="ada")).rows]
        total = await session.scalar(select(func.sum(runs.c.cost_usd)))
    assert kept == costs[::-1]
    assert total == Decimal("999999999.423456790")


async def test_times_come_back_in_utc(database: Database) -> None:
    elsewhere = START.astimezone(timezone(timedelta(hours=5, minutes=30)))
    async with database.write() as session:
        await save_runs(session, [replace(DONE, started_at=elsewhere)])
    async with database.read() as session:
        run = await get_run(session, "run", user_id="ada")
    assert run is not None
    assert run.started_at == START
    assert run.started_at.utcoffset() == timedelta(0)


async def test_only_runs_of_dead_workers_are_interrupted(database: Database) -> None:
    alive = replace(RUN, id="alive", worker="host:2")
    async with database.write() as session:
        await sign_in(session, "host:2")
        await save_runs(session, [RUN, alive, replace(DONE, id="done")])
        assert await mark_interrupted(session) == 1
    async with database.read() as session:
        interrupted = await get_run(session, "run", user_id="ada")
        assert await get_run(session, "alive", user_id="ada") == alive
    assert interrupted is not None
    assert (interrupted.status, interrupted.error_code) == ("interrupted", "interrupted")
    assert interrupted.finished_at is not None
    async with database.write() as session:
        await save_runs(session, [DONE])  # it was alive after all
        assert await get_run(session, "run", user_id="ada") == DONE
        await strike_off(session, ["host:2"], silent_s=None)
        assert await mark_interrupted(session) == 1


async def test_pages_show_every_run_once_newest_first(database: Database) -> None:
    # Two runs share each moment, so the id has to decide.
    made = [replace(DONE, id=f"run {n}", started_at=START + timedelta(seconds=n // 2)) for n in range(9)]
    strangers = [replace(DONE, id="bob's", user_id="bob"), replace(DONE, id="other agent", agent="other")]
    async with database.write() as session:
        await save_runs(session, [*made, *strangers])
    seen: list[str] = []
    cursor = None
    async with database.read() as session:
        while True:
            page = await list_runs(session, user_id="ada", agent="default", status="done", limit=4, cursor=cursor)
            seen += [run.id for run in page.rows]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert len((await list_runs(session, user_id=None)).rows) == 11
    assert seen == [run.id for run in reversed(made)]
