"""How often a password may be tried: per account and per peer, on every outage too."""

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from time import monotonic
from typing import Protocol

from app.errors import LimitExceeded, StoreUnavailable
from app.stores.protocol import Verdict

_MINUTE_S = 60.0
_HOUR_S = 3600.0


class Take(Protocol):
    """`SharedStore.take`."""

    async def __call__(self, key: bytes, *, cost: int = 1, limit: int, window_s: float, force: bool = False) -> Verdict:
        """Take from a meter, if that much is there."""
        ...


class LoginLimits:
    """5 wrong passwords a minute and 20 an hour for one account, 20 a minute from one peer.

    An attempt is counted before the password is looked at, so that a hundred at once are no way around, and given
    back when the password was right. It fails closed: while the shared store is away each worker counts by itself
    with the same limits, so that there may be as many times more attempts as there are workers, and never no limit.
    """

    def __init__(self, take: Take | None = None, *, clock: Callable[[], float] = monotonic) -> None:
        """Count in the store behind `take`; without one, in this process."""
        self._own = _Meters(clock=clock).take
        self._take = take or self._own

    async def count(self, account: str, peer: str) -> None:
        """Count an attempt. Raises `LimitExceeded` where there were too many; that one is not counted."""
        for key, limit, window_s in _meters(account, peer):
            verdict = await self._change(key, cost=1, limit=limit, window_s=window_s)
            if not verdict.allowed:
                raise LimitExceeded(
                    "too many wrong passwords for this account or from this address; wait, or use an API key",
                    retry_after_s=verdict.retry_after_s,
                )

    async def give_back(self, account: str, peer: str) -> None:
        """Take an attempt back whose password was right."""
        for key, limit, window_s in _meters(account, peer):
            await self._change(key, cost=-1, limit=limit, window_s=window_s)

    async def _change(self, key: bytes, *, cost: int, limit: int, window_s: float) -> Verdict:
        with suppress(StoreUnavailable):
            return await self._take(key, cost=cost, limit=limit, window_s=window_s, force=cost < 0)
        return await self._own(key, cost=cost, limit=limit, window_s=window_s, force=cost < 0)


def _meters(account: str, peer: str) -> list[tuple[bytes, int, float]]:
    # The peer first: whom it refuses does not count against the account.
    return [
        (_digest("peer", peer), 20, _MINUTE_S),
        (_digest("account minute", account), 5, _MINUTE_S),
        (_digest("account hour", account), 20, _HOUR_S),
    ]


def _digest(kind: str, name: str) -> bytes:
    return sha256(f"login {kind}:{name}".encode("utf-8", "surrogatepass")).digest()


class _Meters:
    """GCRA in this process, for at most `capacity` keys; when there are more, new ones are refused."""

    def __init__(self, *, clock: Callable[[], float], capacity: int = 100_000) -> None:
        self._clock = clock
        self._capacity = capacity
        self._full_at: dict[bytes, float] = {}
        """For each key the moment when its meter will be as if never used."""

    async def take(self, key: bytes, *, cost: int = 1, limit: int, window_s: float, force: bool = False) -> Verdict:
        now = self._clock()
        if key not in self._full_at and len(self._full_at) >= self._capacity:
            self._full_at = {key: at for key, at in self._full_at.items() if at > now}
            if len(self._full_at) >= self._capacity:
                return Verdict(allowed=False, remaining=0, retry_after_s=window_s, reset_s=window_s)
        step_s = window_s / limit
        before = max(self._full_at.get(key, now), now)
        after = before + cost * step_s
        wait_s = after - window_s - now
        # A step has no exact length in binary, and nobody waits for a billionth of a second.
        if wait_s > 1e-9 and not force:
            free = int((window_s - (before - now)) / step_s + 1e-9)
            return Verdict(allowed=False, remaining=free, retry_after_s=wait_s, reset_s=before - now)
        self._full_at[key] = after
        left = int((window_s - (after - now)) / step_s + 1e-9)
        return Verdict(allowed=True, remaining=max(0, left), retry_after_s=0.0, reset_s=max(0.0, after - now))
