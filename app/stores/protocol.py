"""What a shared store is: fast memory that the workers of one machine, or all replicas, know together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Counter = str
"""What a generation counts; see `SharedStore.generation`. `cache`, `credentials`, `agents` and `listeners` have numbers
of their own; any other name (`cache:<agent>`) may share its number with others, which then are outdated with it."""

PIECES_AT_ONCE = 64
"""Of a log, as `SharedStore.read_on` gives them."""


@dataclass(slots=True)  # not frozen: one is made for each hit, and that would cost three times as much
class Verdict:
    """What a meter says of one `take`."""

    allowed: bool
    remaining: int
    """How much more could be taken right now."""
    retry_after_s: float
    """Seconds until the same `take` would be allowed; 0 where it was."""
    reset_s: float
    """Seconds until the meter is as if never used."""


@dataclass(frozen=True, slots=True)
class StoreNumbers:
    """How a store does, as this process sees it; the numbers only grow."""

    state: Literal["up", "read-only", "down"]
    """`read-only`: it answers, and takes nothing that is written."""
    calls: int
    failures: int
    """Calls that ended in `StoreUnavailable` after the store was asked."""
    refused: int
    """Calls that ended in it at once, since the store is known to be away."""


class SharedStore(Protocol):
    """Entries, leases, meters, generations, posts, logs; two homes: `local` (one machine) and `redis` (all replicas).

    Every method but `generation` raises `StoreUnavailable` when the store does not answer within its deadline, and
    the caller decides what that means (a miss, a local count, a refusal). Nothing else leaves a method, but for
    cancellation; a cancelled call never leaves its reply to somebody else. Keys are digests or short ASCII names.
    """

    @property
    def kind(self) -> Literal["local", "redis"]:
        """How far it reaches."""
        ...

    async def get(self, key: bytes) -> bytes | None:
        """The entry kept under `key`, unless it has expired."""
        ...

    async def put(self, key: bytes, value: bytes, *, ttl_s: float) -> None:
        """Keep an entry for `ttl_s` seconds; every process sees it when this returns."""
        ...

    async def delete(self, key: bytes) -> None:
        """Forget an entry, if there is one."""
        ...

    async def claim(self, key: bytes, owner: str, *, ttl_s: float) -> bool:
        """Take, or renew, the lease on `key` for `owner`; `False` while somebody else has it. Atomic."""
        ...

    async def release(self, key: bytes, owner: str) -> None:
        """Give the lease back, if `owner` still has it."""
        ...

    async def take(self, key: bytes, *, cost: int = 1, limit: int, window_s: float, force: bool = False) -> Verdict:
        """Take `cost` from a meter that holds `limit` and refills in `window_s` seconds, if that much is there.

        Atomic: of N concurrent calls with cost 1 on a fresh meter exactly `limit` are allowed. A refused call takes
        nothing. `force` takes in any case, into debt (the true cost of what was allowed before); a negative `cost`
        gives back, down to a meter that is as if never used. `limit` and `window_s` are more than 0. GCRA
        (ITU-T I.371): one timestamp a key; it has no window edges and runs on a clock that nobody sets.
        """
        ...

    def take_at_once(self, key: bytes, *, cost: int, limit: int, window_s: float) -> Verdict | None:
        """The same without waiting; `None`, and nothing taken, where that cannot be."""
        ...

    def generation(self, counter: Counter) -> int | None:
        """The present generation, without waiting; what was learnt under another one is not valid any more.

        `None` while it cannot be known (the store is away): then nothing remembered may be trusted.
        """
        ...

    async def bump(self, counter: Counter) -> int:
        """Begin a new generation; when this returns, no process trusts what was learnt before."""
        ...

    async def post(self, topic: str, member: str, value: bytes, *, ttl_s: float) -> None:
        """Show `value` under `topic` as what `member` says now, for `ttl_s` seconds."""
        ...

    async def posts(self, topic: str) -> dict[str, bytes]:
        """What every member says now."""
        ...

    async def append(self, key: bytes, pieces: Sequence[bytes], *, at: int, ttl_s: float) -> bool:
        """Add `pieces` to a log as its numbers `at`, `at + 1`, …, and let all of it live for `ttl_s` from now on.

        Numbers that are there stay as they are, so that whoever does not know whether it went well may do it again.
        `False`, and nothing is added, where numbers before `at` are missing: the log is not there any more.
        """
        ...

    async def read_on(self, key: bytes, *, at: int) -> list[bytes] | None:
        """The next pieces of a log from number `at` on, in order, 64 at most; `None` where there is no such log."""
        ...

    async def ping(self) -> None:
        """Return if the store answers and, where it is shared by replicas, takes what is written."""
        ...

    def numbers(self) -> StoreNumbers:
        """How the store does, without asking it."""
        ...

    async def aclose(self) -> None:
        """Let go of files and connections; what is kept stays for the others."""
        ...
