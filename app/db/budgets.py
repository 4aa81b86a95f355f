"""Budgets as stored: what an owner may use, what runs under way have reserved of it, and what was used."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, cast

from sqlalchemy import CursorResult, bindparam, delete, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import budget_reservations, budgets, cached_answers, runs
from app.errors import NotFound

Period = Literal["day", "month"]
Unit = Literal["usd", "tokens"]

NANO = 1_000_000_000
"""Billionths of a dollar in one."""
_KEPT_AFTER_EXPIRY = timedelta(days=1)
"""A run that ends after its reservation expired (a stopped machine) still finds it, and is charged once."""


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """One budget of an owner (`user:<id>`, `key:<id>`); `amount` and `spent` in tokens or billionths of a dollar."""

    owner: str
    period: Period
    unit: Unit
    amount: int
    spent: int
    renews_at: datetime

    def at(self, now: datetime) -> "BudgetRow":
        """The same budget in the period of `now`."""
        return self if now < self.renews_at else replace(self, spent=0, renews_at=renewal(self.period, now))


@dataclass(frozen=True, slots=True)
class Spend:
    """What a run uses, in both units."""

    tokens: int = 0
    nanodollars: int = 0

    def of(self, unit: Unit) -> int:
        """The amount in this unit."""
        return self.tokens if unit == "tokens" else self.nanodollars

    def plus(self, other: "Spend") -> "Spend":
        """Both together."""
        return Spend(self.tokens + other.tokens, self.nanodollars + other.nanodollars)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a run may come to, for all `owners` at once."""

    id: str
    owners: tuple[str, ...]
    spend: Spend
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Refusal:
    """The budget that has no room for a reservation; `reserved` is what runs under way hold of it."""

    budget: BudgetRow
    reserved: int

    @property
    def is_final(self) -> bool:
        """Whether nothing can change it before the budget renews; else runs under way may leave some over."""
        return self.budget.spent >= self.budget.amount


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget with what is reserved of it now, and what answers from the cache saved in its period."""

    budget: BudgetRow
    reserved: int
    saved: int | None


_COLUMNS = tuple(budgets.c[name] for name in BudgetRow.__dataclass_fields__)


def renewal(period: Period, now: datetime) -> datetime:
    """The end of the day or month of `now`, in UTC."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return midnight + timedelta(days=1)
    return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)


def _beginning(budget: BudgetRow) -> datetime:
    last = budget.renews_at - timedelta(days=1)
    return last if budget.period == "day" else last.replace(day=1)


async def set_budget(
    session: AsyncSession, owner: str, *, period: Period, unit: Unit, amount: int, now: datetime
) -> None:
    """Give `owner` this budget for the period. What was used so far stays, unless the unit is another one."""
    mine = (budgets.c.owner == owner) & (budgets.c.period == period)
    before = (await session.execute(select(*_COLUMNS).where(mine).with_for_update())).one_or_none()
    if before is None:
        row = {"owner": owner, "period": period, "unit": unit, "amount": amount, "spent": 0}
        await session.execute(insert(budgets).values(**row, renews_at=renewal(period, now)))
        return
    values: dict[str, Any] = {"unit": unit, "amount": amount}
    if before.unit != unit:
        values["spent"] = 0
    await session.execute(update(budgets).where(mine).values(**values))


async def delete_budgets(session: AsyncSession, owner: str, *, period: Period | None = None) -> None:
    """Lift the budget of this period, or all of the owner's. Raises `NotFound` where there is none."""
    mine = budgets.c.owner == owner
    if period is not None:
        mine &= budgets.c.period == period
    deleted = await session.execute(delete(budgets).where(mine))
    if cast("CursorResult[Any]", deleted).rowcount == 0:
        raise NotFound("there is no such budget")


async def forget_budgets(session: AsyncSession, owners: Collection[str]) -> None:
    """Remove all budgets of owners that are gone."""
    await session.execute(delete(budgets).where(budgets.c.owner.in_(owners)))


async def has_budget(session: AsyncSession, owners: Collection[str]) -> bool:
    """Whether any of the owners has a budget."""
    return bool((await session.execute(select(exists().where(budgets.c.owner.in_(owners))))).scalar_one())


async def budget_states(session: AsyncSession, owners: Collection[str], *, now: datetime) -> list[BudgetState]:
    """The budgets of the owners as they stand at `now`."""
    query = select(*_COLUMNS).where(budgets.c.owner.in_(owners)).order_by(budgets.c.owner.desc(), budgets.c.period)
    found = [BudgetRow(*row).at(now) for row in (await session.execute(query)).all()]
    reserved = await _reserved(session, owners, now)
    return [
        BudgetState(row, reserved.get(row.owner, Spend()).of(row.unit), await _saved(session, row)) for row in found
    ]


async def book(
    session: AsyncSession, reservations: Sequence[Reservation], settled: dict[str, Spend], *, now: datetime
) -> list[Refusal | None]:
    """Settle what has ended, then reserve what shall begin, in order; `None` for each that may begin.

    A reservation has to fit into every budget of its owners, or be the only one on what is left of it: so the last
    run may use more than is left, and no second one. Exact over processes and replicas: the rows of the budgets are
    locked first, and all that is reserved is read afterwards. An id is settled once.
    """
    ended: dict[str, Spend] = {}
    if settled:
        mine = budget_reservations.c.id.in_(list(settled))
        for id_, owner in await session.execute(
            select(budget_reservations.c.id, budget_reservations.c.owner).where(mine)
        ):
            ended[owner] = ended.get(owner, Spend()).plus(settled[id_])
    owners = sorted({*ended, *(owner for one in reservations for owner in one.owners)})
    locked = select(*_COLUMNS).where(budgets.c.owner.in_(owners)).order_by(budgets.c.owner, budgets.c.period)
    # SQLite has no row locks and needs none: a transaction that writes is alone.
    before = [BudgetRow(*row) for row in (await session.execute(locked.with_for_update())).all()]
    if settled:
        outdated = budget_reservations.c.expires_at <= now - _KEPT_AFTER_EXPIRY
        gone = await session.execute(
            delete(budget_reservations)
            .where(or_(budget_reservations.c.id.in_(list(settled)), budget_reservations.c.owner.in_(owners) & outdated))
            .returning(budget_reservations.c.id, budget_reservations.c.owner)
        )
        # Only what this transaction removed: another may have settled the same after a commit of unknown fate.
        ended = {}
        for id_, owner in gone:
            if id_ in settled:
                ended[owner] = ended.get(owner, Spend()).plus(settled[id_])
    after: dict[str, list[BudgetRow]] = {}
    for row in before:
        row = row.at(now)
        spent = row.spent + ended.get(row.owner, Spend()).of(row.unit)
        after.setdefault(row.owner, []).append(replace(row, spent=spent))
    reserved = await _reserved(session, owners, now) if reservations else {}
    results: list[Refusal | None] = []
    taken: list[dict[str, Any]] = []
    for one in reservations:
        refusal = _refusal(one, [row for owner in one.owners for row in after.get(owner, ())], reserved)
        results.append(refusal)
        if refusal is None:
            for owner in one.owners:
                reserved[owner] = reserved.get(owner, Spend()).plus(one.spend)
                taken.append(
                    {
                        "id": one.id,
                        "owner": owner,
                        "tokens": one.spend.tokens,
                        "nanodollars": one.spend.nanodollars,
                        "expires_at": one.expires_at,
                    }
                )
    if taken:
        await session.execute(insert(budget_reservations), taken)
    old = {(row.owner, row.period): row for row in before}
    changed = [row for rows in after.values() for row in rows if row != old[row.owner, row.period]]
    await _write(session, changed)
    return results


def _refusal(one: Reservation, rows: Iterable[BudgetRow], reserved: dict[str, Spend]) -> Refusal | None:
    for row in rows:
        held = reserved.get(row.owner, Spend()).of(row.unit)
        wanted = one.spend.of(row.unit)
        if row.spent >= row.amount or (held and row.spent + held + wanted > row.amount):
            return Refusal(row, held)
    return None


async def _write(session: AsyncSession, changed: Sequence[BudgetRow]) -> None:
    if not changed:
        return
    mine = (budgets.c.owner == bindparam("its_owner")) & (budgets.c.period == bindparam("its_period"))
    statement = (
        update(budgets)
        .where(mine)
        .values(spent=bindparam("now_spent"), renews_at=bindparam("renews", type_=budgets.c.renews_at.type))
    )
    await (await session.connection()).execute(
        statement,
        [
            {"its_owner": row.owner, "its_period": row.period, "now_spent": row.spent, "renews": row.renews_at}
            for row in changed
        ],
    )


async def _reserved(session: AsyncSession, owners: Collection[str], now: datetime) -> dict[str, Spend]:
    columns = budget_reservations.c
    query = (
        select(columns.owner, func.sum(columns.tokens), func.sum(columns.nanodollars))
        .where(columns.owner.in_(owners), columns.expires_at > now)
        .group_by(columns.owner)
    )
    return {owner: Spend(int(tokens), int(nanodollars)) for owner, tokens, nanodollars in await session.execute(query)}


async def _saved(session: AsyncSession, budget: BudgetRow) -> int | None:
    """What answers from the cache would have cost; `None` for a key, since they are recorded by user."""
    kind, _, user_id = budget.owner.partition(":")
    if kind != "user":
        return None
    total = 0
    for table, at in ((runs, runs.c.started_at), (cached_answers, cached_answers.c.minute)):
        what = table.c.cost_usd if budget.unit == "usd" else table.c.input_tokens + table.c.output_tokens
        mine = (table.c.user_id == user_id) & (at >= _beginning(budget))
        if table is runs:
            mine &= runs.c.cached
        found: Decimal | int | None = (await session.execute(select(func.sum(what)).where(mine))).scalar_one()
        total += int((found or 0) * (NANO if budget.unit == "usd" else 1))
    return total
