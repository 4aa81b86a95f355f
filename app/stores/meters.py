"""Meters in this process: how much each key took of late, and how much more it may take (GCRA, ITU-T I.371)."""

from collections.abc import Callable
from time import monotonic

from app.stores.protocol import Verdict

SLACK = 1e-3
"""Of a step: a step has no exact length in binary, and the sum of `limit` of them must still fit into the window."""


def judge(used_s: float, *, cost: int, limit: int, window_s: float, force: bool) -> Verdict:
    """What a meter says that is as if never used in `used_s` seconds; where it allows, `reset_s` is its new state."""
    step_s = window_s / limit
    after_s = max(0.0, used_s + cost * step_s)
    wait_s = after_s - window_s
    if wait_s > step_s * SLACK and cost > 0 and not force:
        return Verdict(False, _left(used_s, window_s, step_s), wait_s, used_s)
    return Verdict(True, _left(after_s, window_s, step_s), 0.0, after_s)


class Meters:
    """One moment a key, for at most `capacity` keys; when there are more, those that ran full first are forgotten.

    A look at a meter costs about a microsecond. Nothing here waits, so whatever happens in one call is atomic.
    """

    def __init__(self, *, clock: Callable[[], float] = monotonic, capacity: int = 100_000) -> None:
        self._clock = clock
        self._capacity = capacity
        self._full_at: dict[bytes, float] = {}
        """For each key the moment at which its meter is as if never used."""

    def take(self, key: bytes, *, cost: int = 1, limit: int, window_s: float, force: bool = False) -> Verdict:
        """Take `cost` from a meter that holds `limit` and refills in `window_s` seconds; see `SharedStore.take`.

        A negative `cost` gives back, and is given back in any case.
        """
        now = self._clock()
        used_s = max(0.0, self._full_at.get(key, now) - now)
        verdict = judge(used_s, cost=cost, limit=limit, window_s=window_s, force=force)
        if verdict.allowed:
            self._set(key, now, verdict.reset_s)
        return verdict

    def set(self, key: bytes, reset_s: float) -> None:
        """Make the meter one that is as if never used in `reset_s` seconds."""
        self._set(key, self._clock(), reset_s)

    def _set(self, key: bytes, now: float, used_s: float) -> None:
        if len(self._full_at) >= self._capacity and key not in self._full_at:
            self._make_room(now)
        self._full_at[key] = now + used_s

    def _make_room(self, now: float) -> None:
        used = sorted((at, key) for key, at in self._full_at.items() if at > now)
        self._full_at = {key: at for at, key in used[-self._capacity // 2 :]}


def _left(used_s: float, window_s: float, step_s: float) -> int:
    return max(0, int((window_s - used_s) / step_s + SLACK))
