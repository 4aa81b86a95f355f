"""Budgets: what users and API keys may use in a day or a month, and what is left of it."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator

from app.api.dependencies import Admin, CurrentCaller, RuntimeDep
from app.api.json_route import Body, JsonRoute, Text
from app.core.budgets import NANO, BudgetState, Period, Unit, owner_of, owners_of
from app.runtime import Runtime

router = APIRouter(prefix="/api/v1", tags=["budgets"], route_class=JsonRoute)

MAX_USD = 999_999_999
MAX_TOKENS = 10**15

Id = Annotated[Text, Field(min_length=1, max_length=64)]


class BudgetBody(Body):
    """An amount for a period, in dollars or in tokens."""

    period: Period
    unit: Unit
    amount: Annotated[Decimal, Field(ge=0, le=MAX_TOKENS, max_digits=18, decimal_places=9)]

    @model_validator(mode="after")
    def _fits_its_unit(self) -> "BudgetBody":
        if self.unit == "usd" and self.amount > MAX_USD:
            raise ValueError(f"amount must be at most {MAX_USD} dollars")
        if self.unit == "tokens" and self.amount != int(self.amount):
            raise ValueError("amount must be a whole number of tokens")
        return self


class BudgetReply(BaseModel):
    """A budget in its present period. Amounts are dollars or tokens, as `unit` says."""

    of: Literal["user", "key"]
    period: Period
    unit: Unit
    amount: float
    spent: float
    reserved: float
    """By runs that are under way."""
    remaining: float
    saved: float | None
    """What answers from the cache would have cost; `null` for a key, since those are recorded by user."""
    renews_at: datetime


class BudgetsReply(BaseModel):
    """All budgets of a user, or of a key; a run has to fit into each."""

    budgets: list[BudgetReply]


@router.get("/auth/me/budget")
async def my_budget(caller: CurrentCaller, runtime: RuntimeDep) -> BudgetsReply:
    """What is left for the caller: the user's budgets, and those of the API key that is used."""
    return await _shown(runtime, *owners_of(caller)) if caller.has_budget else BudgetsReply(budgets=[])


@router.get("/users/{user_id}/budget")
async def budget_of_user(user_id: Id, _: Admin, runtime: RuntimeDep) -> BudgetsReply:
    """The budgets of a user."""
    await runtime.accounts.user(user_id)
    return await _shown(runtime, owner_of(user_id=user_id))


@router.put("/users/{user_id}/budget")
async def set_budget_of_user(user_id: Id, body: BudgetBody, _: Admin, runtime: RuntimeDep) -> BudgetsReply:
    """Give a user a budget for a day or a month, beside that for the other; what was used stays."""
    await runtime.accounts.user(user_id)
    return await _set(runtime, owner_of(user_id=user_id), body)


@router.delete("/users/{user_id}/budget", status_code=204)
async def lift_budget_of_user(user_id: Id, _: Admin, runtime: RuntimeDep, period: Period | None = None) -> None:
    """Lift the user's budget for this period, or both."""
    await runtime.budgets.remove(owner_of(user_id=user_id), period=period)


@router.get("/users/{user_id}/api-keys/{key_id}/budget")
async def budget_of_key(user_id: Id, key_id: Id, _: Admin, runtime: RuntimeDep) -> BudgetsReply:
    """The budgets of an API key; those of its user hold beside them."""
    await runtime.accounts.key(key_id, user_id=user_id)
    return await _shown(runtime, owner_of(key_id=key_id))


@router.put("/users/{user_id}/api-keys/{key_id}/budget")
async def set_budget_of_key(user_id: Id, key_id: Id, body: BudgetBody, _: Admin, runtime: RuntimeDep) -> BudgetsReply:
    """Give an API key a budget for a day or a month; what was used stays."""
    await runtime.accounts.key(key_id, user_id=user_id)
    return await _set(runtime, owner_of(key_id=key_id), body)


@router.delete("/users/{user_id}/api-keys/{key_id}/budget", status_code=204)
async def lift_budget_of_key(
    user_id: Id, key_id: Id, _: Admin, runtime: RuntimeDep, period: Period | None = None
) -> None:
    """Lift the key's budget for this period, or both."""
    await runtime.accounts.key(key_id, user_id=user_id)
    await runtime.budgets.remove(owner_of(key_id=key_id), period=period)


async def _set(runtime: Runtime, owner: str, body: BudgetBody) -> BudgetsReply:
    amount = int(body.amount * NANO) if body.unit == "usd" else int(body.amount)
    await runtime.budgets.put(owner, period=body.period, unit=body.unit, amount=amount)
    return await _shown(runtime, owner)


async def _shown(runtime: Runtime, *owners: str) -> BudgetsReply:
    return BudgetsReply(budgets=[_reply(state) for state in await runtime.budgets.states(owners)])


def _reply(state: BudgetState) -> BudgetReply:
    budget = state.budget

    def shown(amount: int) -> float:
        return amount / NANO if budget.unit == "usd" else amount

    return BudgetReply(
        of="user" if budget.owner.startswith("user:") else "key",
        period=budget.period,
        unit=budget.unit,
        amount=shown(budget.amount),
        spent=shown(budget.spent),
        reserved=shown(state.reserved),
        remaining=shown(max(0, budget.amount - budget.spent - state.reserved)),
        saved=None if state.saved is None else shown(state.saved),
        renews_at=budget.renews_at,
    )
