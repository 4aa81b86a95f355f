"""How often a password may be tried: per account and per peer, on every outage too."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from time import monotonic

from app.errors import LimitExceeded, StoreUnavailable
from app.stores.meters import Meters
from app.stores.protocol import Verdict

_MINUTE_S = 60.0
_HOUR_S = 3600.0


Take = Callable[..., Awaitable[Verdict]]
"""`SharedStore.take`."""


class LoginLimits:
    """5 wrong passwords a minute and 20 an hour for one account, 20 a minute from one peer.

    An attempt is counted before the password is looked at, so that a hundred at once are no way around, and given
    back when the password was right. It fails closed: while the shared store is away each worker counts by itself
    with the same limits, so that there may be as many times more attempts as there are workers, and never no limit.
    """

    def __init__(self, take: Take | None = None, *, clock: Callable[[], float] = monotonic) -> None:
        """Count in the store behind `take`; without one, in this process."""
        self._own = Meters(clock=clock)
        self._shared = take

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
        if self._shared is not None:
            with suppress(StoreUnavailable):
                return await self._shared(key, cost=cost, limit=limit, window_s=window_s)
        return self._own.take(key, cost=cost, limit=limit, window_s=window_s)


def _meters(account: str, peer: str) -> list[tuple[bytes, int, float]]:
    # The peer first: whom it refuses does not count against the account.
    return [
        (_digest("peer", peer), 20, _MINUTE_S),
        (_digest("account minute", account), 5, _MINUTE_S),
        (_digest("account hour", account), 20, _HOUR_S),
    ]


def _digest(kind: str, name: str) -> bytes:
    return sha256(f"login {kind}:{name}".encode("utf-8", "surrogatepass")).digest()
