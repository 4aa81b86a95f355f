"""What a Redis says of itself that our use of it must agree with."""

from collections.abc import Callable
from dataclasses import dataclass
from time import time

from app.stores.redis_link import RedisLink


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """How one Redis keeps what it is given, and what time it has."""

    policy: str
    """`maxmemory-policy`: what goes when the memory is full."""
    max_bytes: int
    """`maxmemory`; 0 is no bound."""
    ahead_s: float
    """How far its clock is ahead of ours, at least; negative where it is behind, 0 where both may be the same."""


async def read_redis_facts(url: str, *, clock: Callable[[], float] = time) -> RedisFacts:
    """Ask the Redis of `url`. Raises `StoreUnavailable`, or `BadConfiguration` for a URL that cannot work."""
    link = RedisLink(url, connections=1)
    try:
        # CONFIG is closed to clients of many a hosted Redis, INFO is not.
        told: bytes = await link.call("INFO", "memory", check=lambda answer: b"maxmemory" in answer)
        lines = dict(line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
        asked = clock()
        seconds, microseconds = await link.call("TIME")
        theirs, answered = int(seconds) + int(microseconds) / 1e6, clock()
    finally:
        await link.aclose()
    ahead_s = theirs - answered if theirs > answered else min(0.0, theirs - asked)
    return RedisFacts(lines["maxmemory_policy"], int(lines["maxmemory"]), ahead_s)
