"""Budgets: reserved before a run, settled after it, so that no crowd of requests overspends by more than one run."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from itertools import islice
from time import monotonic
from uuid import uuid4

from app.core.run import Caller
from app.db.async_session import Database
from app.db.budgets import (
    NANO,
    BudgetState,
    Period,
    Refusal,
    Reservation,
    Spend,
    Unit,
    book,
    budget_states,
    delete_budgets,
    set_budget,
)
from app.errors import DatabaseUnavailable, LimitExceeded, MnemosineError, Unavailable

__all__ = ["NANO", "BudgetHold", "BudgetState", "Budgets", "Period", "Spend", "Unit", "owner_of", "owners_of"]

_log = logging.getLogger(__name__)

_BATCH = 500
_LOOK_AGAIN_S = 0.1
_RETRY_S = 1.0


def owner_of(*, user_id: str | None = None, key_id: str | None = None) -> str:
    """What a budget belongs to: a user, or an API key."""
    return f"user:{user_id}" if key_id is None else f"key:{key_id}"


def owners_of(caller: Caller) -> tuple[str, ...]:
    """Whose budgets a run of this caller has to fit into."""
    user = (owner_of(user_id=caller.id),)
    return user if caller.key_id is None else (*user, owner_of(key_id=caller.key_id))


def spend_of(tokens: int, cost_usd: Decimal | None) -> Spend:
    """What a run uses; where its price is not known it costs tokens and no money."""
    nanodollars = int(((cost_usd or Decimal(0)) * NANO).to_integral_value(ROUND_CEILING))
    return Spend(tokens, nanodollars)


def shown_amount(unit: Unit, amount: int) -> str:
    """An amount as people read it."""
    return f"${Decimal(amount) / NANO:.2f}" if unit == "usd" else f"{amount:,} tokens"


@dataclass(frozen=True, slots=True)
class BudgetHold:
    """What a run has reserved. Give it to `Budgets.settle` when the run has ended, however it did."""

    id: str


@dataclass(slots=True, eq=False)
class _Wish:
    reservation: Reservation
    until: float
    """On the monotonic clock: how long it may wait for runs under way to leave something over."""
    granted: asyncio.Future[BudgetHold] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Budgets:
    """The budgets of users and keys, and the one writer of this worker that books on them.

    What comes together while one transaction is written goes into the next, so a crowd costs few commits. A run that
    finds the rest of its budget reserved by runs under way waits for them, up to `wait_s`. A reservation counts for
    `lease_s`, which is longer than any run: what a dead worker reserved is free again after that.

    While the database is away nothing can be reserved, and whoever has a budget gets a 503; what is to be settled
    waits for its return.
    """

    def __init__(
        self,
        database: Database,
        *,
        lease_s: float,
        changed: Callable[[], Awaitable[None]],
        wait_s: float = 10.0,
        on_refusal: Callable[[], None] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Book in `database`; `changed()` makes every process look anew who has a budget."""
        self._database = database
        self._lease = timedelta(seconds=lease_s)
        self._changed = changed
        self._wait_s = wait_s
        self._on_refusal = on_refusal
        self._clock = clock
        self._wishes: deque[_Wish] = deque()
        self._waiting: list[_Wish] = []
        self._settled: dict[str, Spend] = {}
        self._news = asyncio.Event()
        self._booking = asyncio.Lock()
        self._stuck = False
        self._writer: asyncio.Task[None] | None = None

    async def reserve(self, caller: Caller, estimate: Spend) -> BudgetHold | None:
        """Keep `estimate` free for a run of the caller; `None` at once for one who has no budget.

        Raises `LimitExceeded` that says which budget has no room and when it renews, and `DatabaseUnavailable`.
        """
        if not caller.has_budget:
            return None
        reservation = Reservation(uuid4().hex, owners_of(caller), estimate, self._clock() + self._lease)
        wish = _Wish(reservation, monotonic() + self._wait_s)
        self._wishes.append(wish)
        self._wake()
        try:
            return await wish.granted
        except LimitExceeded:
            if self._on_refusal is not None:
                self._on_refusal()
            raise
        except BaseException:
            granted = wish.granted
            if not granted.cancel() and not granted.cancelled() and granted.exception() is None:
                self.settle(granted.result(), Spend())
            raise

    def settle(self, hold: BudgetHold | None, used: Spend) -> None:
        """Put what was really used in the place of what was reserved; it is written in a moment, in the background."""
        if hold is not None:
            self._settled[hold.id] = used
            self._wake()

    async def states(self, owners: Collection[str]) -> list[BudgetState]:
        """The budgets of these owners as they stand, with all that this worker has to settle."""
        await self.flush()
        async with self._database.read() as session:
            return await budget_states(session, owners, now=self._clock())

    async def put(self, owner: str, *, period: Period, unit: Unit, amount: int) -> None:
        """Give `owner` a budget. When this returns, every process obeys it."""
        async with self._database.write() as session:
            await set_budget(session, owner, period=period, unit=unit, amount=amount, now=self._clock())
        await self._changed()

    async def remove(self, owner: str, *, period: Period | None = None) -> None:
        """Lift a budget, or all of the owner's. Raises `NotFound` where there is none."""
        async with self._database.write() as session:
            await delete_budgets(session, owner, period=period)
        await self._changed()

    async def flush(self) -> None:
        """Write what is to be settled, now. Raises `DatabaseUnavailable`; it then waits on."""
        while self._settled:
            await self._book([])

    async def aclose(self) -> None:
        """Refuse what waits, and write what is to be settled."""
        for wish in [*self._wishes, *self._waiting]:
            if not wish.granted.done():
                wish.granted.set_exception(Unavailable("the server is shutting down"))
        self._wishes.clear()
        self._waiting.clear()
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        try:
            await self.flush()
        except DatabaseUnavailable:
            _log.error("the database is away; %d reservations expire instead of being settled", len(self._settled))

    def _wake(self) -> None:
        self._news.set()
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="budgets")

    async def _write(self) -> None:
        """Book until nothing is left to be booked; `_wake` begins anew."""
        while self._wishes or self._waiting or self._settled:
            self._news.clear()
            wishes = [*self._waiting, *self._wishes]
            wishes, later = wishes[:_BATCH], wishes[_BATCH:]
            self._waiting, self._wishes = [], deque(later)
            try:
                await self._book([wish for wish in wishes if not wish.granted.done()])
                self._stuck = False
            except Exception as error:
                # Whoever waits hears of it; what is to be settled is tried again.
                self._tell(wishes, error)
                if not self._stuck:
                    _log.warning("budgets cannot be booked; what was used is written when the database is back")
                self._stuck = True
                await asyncio.sleep(_RETRY_S if not self._wishes else _LOOK_AGAIN_S)
                continue
            if self._waiting and not self._wishes and not self._settled:
                # Another worker may settle what these wait for; a run of this one rings at once.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_S):
                        await self._news.wait()

    def _tell(self, wishes: list[_Wish], error: Exception) -> None:
        for wish in wishes:
            if not wish.granted.done():
                told = error if isinstance(error, MnemosineError) else DatabaseUnavailable("budgets cannot be booked")
                wish.granted.set_exception(told)

    async def _book(self, wishes: list[_Wish]) -> None:
        async with self._booking:
            settled = dict(islice(self._settled.items(), _BATCH))
            if not wishes and not settled:
                return
            now = self._clock()
            async with self._database.write() as session:
                refusals = await book(session, [wish.reservation for wish in wishes], settled, now=now)
            for hold_id in settled:
                del self._settled[hold_id]
        for wish, refusal in zip(wishes, refusals, strict=True):
            hold = BudgetHold(wish.reservation.id)
            if refusal is not None:
                if not refusal.is_final and monotonic() < wish.until and not wish.granted.done():
                    self._waiting.append(wish)
                elif not wish.granted.done():
                    wish.granted.set_exception(_refused(refusal, now))
            elif wish.granted.done():
                self.settle(hold, Spend())  # the caller left while it was written
            else:
                wish.granted.set_result(hold)


def _refused(refusal: Refusal, now: datetime) -> LimitExceeded:
    budget = refusal.budget
    whose = "this user" if budget.owner.startswith("user:") else "this API key"
    what = f"the budget of {whose} for the {budget.period}, {shown_amount(budget.unit, budget.amount)},"
    renews = f"it renews at {budget.renews_at:%Y-%m-%dT%H:%M:%SZ}"
    if not refusal.is_final:
        return LimitExceeded(f"what is left of {what} is reserved by prompts under way; {renews}", retry_after_s=1.0)
    return LimitExceeded(
        f"{what} is used up; {renews}",
        retry_after_s=(budget.renews_at - now).total_seconds(),
        retry_useful=False,
    )
