"""How often a password may be tried."""

import pytest

from app.core.login_limits import LoginLimits
from app.errors import LimitExceeded, StoreUnavailable
from app.stores.protocol import Verdict


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def tries(limits: LoginLimits, account: str, peer: str, *, at_most: int = 200) -> int:
    """How many attempts in a row are allowed."""
    for done in range(at_most):
        try:
            await limits.count(account, peer)
        except LimitExceeded:
            return done
    return at_most


async def test_five_a_minute_for_one_account_from_wherever() -> None:
    clock = Clock()
    limits = LoginLimits(clock=clock)
    allowed = 0
    for number in range(100):
        allowed += await tries(limits, "ada", f"10.0.0.{number}", at_most=1)
    assert allowed == 5
    clock.now += 12.001
    assert await tries(limits, "ada", "10.0.1.1") == 1


async def test_twenty_an_hour_for_one_account() -> None:
    clock = Clock()
    limits = LoginLimits(clock=clock)
    allowed = 0
    for minute in range(60):
        allowed += await tries(limits, "ada", f"10.0.0.{minute}")
        clock.now += 60
    # Twenty at once, and what an hour brings back.
    assert 20 <= allowed <= 40


async def test_twenty_a_minute_from_one_peer_for_whichever_accounts() -> None:
    limits = LoginLimits(clock=Clock())
    allowed = 0
    for number in range(100):
        allowed += await tries(limits, f"user{number}", "10.0.0.1", at_most=1)
    assert allowed == 20
    assert await tries(limits, "user1", "10.0.0.2", at_most=1) == 1


async def test_the_wait_that_is_named_is_enough_and_not_too_long() -> None:
    clock = Clock()
    limits = LoginLimits(clock=clock)
    await tries(limits, "ada", "10.0.0.1")
    with pytest.raises(LimitExceeded) as refused:
        await limits.count("ada", "10.0.0.1")
    wait_s = refused.value.retry_after_s
    assert wait_s is not None
    clock.now += wait_s - 0.05
    assert await tries(limits, "ada", "10.0.0.1") == 0
    clock.now += 0.05
    assert await tries(limits, "ada", "10.0.0.1") == 1


async def test_right_passwords_are_not_counted_but_do_not_forgive_wrong_ones() -> None:
    limits = LoginLimits(clock=Clock())
    for _ in range(100):
        await limits.count("ada", "10.0.0.1")
        await limits.give_back("ada", "10.0.0.1")
    for _ in range(4):
        await limits.count("ada", "10.0.0.1")
    await limits.count("ada", "10.0.0.1")
    await limits.give_back("ada", "10.0.0.1")
    assert await tries(limits, "ada", "10.0.0.1") == 1


async def test_a_store_that_is_away_leaves_the_same_limits_in_this_process() -> None:
    async def away(key: bytes, *, cost: int, limit: int, window_s: float) -> Verdict:
        raise StoreUnavailable("the store does not answer")

    assert await tries(LoginLimits(away, clock=Clock()), "ada", "10.0.0.1") == 5
