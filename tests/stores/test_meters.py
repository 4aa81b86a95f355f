"""The meters of every home against the plainest model of a leaky bucket, on clocks that the test holds."""

import asyncio
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from app.stores.meters import Meters, judge
from app.stores.protocol import Verdict
from app.stores.slots import Slots

STEPS = st.lists(
    st.tuples(
        st.integers(0, 120_000),  # milliseconds that pass before
        st.integers(-20, 40),  # cost
        st.booleans(),  # force
    ),
    min_size=1,
    max_size=40,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bucket:
    """Exact: what is in it drains at `limit` a window; a take fits or does not."""

    def __init__(self, limit: int, window_ms: int) -> None:
        self.limit, self.window_ms = limit, window_ms
        self.content = Fraction(0)

    def take(self, passed_ms: int, cost: int, force: bool) -> tuple[bool, Fraction]:
        self.content = max(Fraction(0), self.content - Fraction(passed_ms * self.limit, self.window_ms))
        allowed = self.content + cost <= self.limit or cost <= 0 or force
        over = self.content + cost - self.limit
        if allowed:
            self.content = max(Fraction(0), self.content + cost)
        return allowed, over


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, limit=st.integers(1, 30), window_ms=st.sampled_from([100, 1000, 60_000, 3_600_000]))
def test_a_meter_is_a_leaky_bucket(steps: list[tuple[int, int, bool]], limit: int, window_ms: int) -> None:
    clock, bucket = Clock(), Bucket(limit, window_ms)
    meters = Meters(clock=clock)
    with TemporaryDirectory() as folder:
        slots = Slots(Path(folder) / "slots", capacity=16, clock=clock)
        for passed_ms, cost, force in steps:
            clock.now += passed_ms / 1000
            window_s = window_ms / 1000
            verdict = meters.take(b"m", cost=cost, limit=limit, window_s=window_s, force=force)
            shared = asyncio.run(_take(slots, cost=cost, limit=limit, window_s=window_s, force=force))
            assert shared == verdict
            allowed, over = bucket.take(passed_ms, cost, force)
            if abs(over) > Fraction(1, 100):  # exactly on the edge the clock's own rounding may decide
                assert verdict.allowed == allowed
            if verdict.allowed != allowed:
                bucket.content += cost if verdict.allowed else -cost
            assert abs(verdict.reset_s - float(bucket.content * window_ms / 1000 / limit)) < window_ms / limit / 50_000
            if not verdict.allowed:
                assert abs(verdict.retry_after_s - float(over * window_ms / 1000 / limit)) < window_ms / limit / 50_000
        slots.close()


async def _take(slots: Slots, *, cost: int, limit: int, window_s: float, force: bool) -> Verdict:
    verdicts: list[Verdict] = []

    def decide(used_s: float, _: bytes) -> tuple[float, bytes] | None:
        verdicts.append(judge(used_s, cost=cost, limit=limit, window_s=window_s, force=force))
        return (verdicts[0].reset_s, bytes(8)) if verdicts[0].allowed else None

    await slots.change(b"m", decide, deadline_s=1)
    return verdicts[0]
