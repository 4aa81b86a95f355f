"""What other sizes and lifetimes of the cache would have done, from a sample of the questions that were asked."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from time import monotonic

_KEYS = 256
"""Sampled keys at once; above it the sample is halved (SHARDS: Waldspurger and others, FAST 2015)."""
_SPACE = 1 << 64
_ENOUGH = 200
"""Fewer sampled questions than this prove nothing; no recommendation is drawn from them."""
SIZES = (0.5, 1.0, 2.0, 4.0)
"""As multiples of the bytes that the cache has."""
TTLS_S = (600.0, 3600.0, 86_400.0)


@dataclass(slots=True)
class _Seen:
    bytes: int
    stored_at: list[float]
    """For each lifetime that is tried: when the entry would have been stored."""
    good_until: float
    """When the first of these lifetimes is over."""


class CacheCurve:
    """A miss-ratio curve over bytes, and one over lifetimes.

    A key is sampled by its digest, so every use of it is seen or none. For a use, the bytes used since the last one
    (Mattson's stack distance, scaled up by the sampling) tell which sizes would still have had it; for each lifetime
    the sample is played through on its own. Where all that is sampled fits into the smallest size and is young enough
    for the shortest lifetime, as it mostly is, a use is a hit everywhere, and counting it costs a fifth of a
    microsecond.
    """

    def __init__(
        self, *, max_bytes: int, ttl_s: float, share: float = 0.25, clock: Callable[[], float] = monotonic
    ) -> None:
        """Begin with this `share` of the keys; a sample that grows too large is halved."""
        self.max_bytes = max_bytes
        self.ttl_s = ttl_s
        self.asked = 0
        self._clock = clock
        self._share = share
        self.first_unsampled = b""
        """The digest from which on keys are not followed."""
        self._bytes = 0
        """Of all that is in the stack."""
        self._bytes_of_smallest = 0.0
        """The smallest size that is tried, scaled down to the sample."""
        self._stack: OrderedDict[bytes, _Seen] = OrderedDict()
        self._lifetimes = (ttl_s, *TTLS_S)
        self._hits_everywhere = 0.0
        self._hits_by_size = [0.0] * len(SIZES)
        """Beside those everywhere, as for lifetimes."""
        self._hits_by_ttl = [0.0] * len(self._lifetimes)
        self._sample(share)

    def record(self, digest: bytes, size: int) -> None:
        """Note one question, whether it was a hit or was stored. `size` is that of its entry, in bytes."""
        if digest >= self.first_unsampled:
            return
        now = self._clock()
        self.asked += 1
        seen = self._stack.get(digest)
        if seen is None:
            self._stack[digest] = _Seen(size, [now] * len(self._lifetimes), now + min(self._lifetimes))
            self._bytes += size
            if len(self._stack) > _KEYS:
                self._halve()
            return
        self._bytes += size - seen.bytes
        seen.bytes = size
        if now < seen.good_until and self._bytes <= self._bytes_of_smallest:
            self._hits_everywhere += 1
        else:
            self._play(digest, seen, now)
        self._stack.move_to_end(digest)

    def by_size(self) -> dict[int, float]:
        """For each size in bytes, the hit ratio that it would have given with today's lifetime."""
        return {
            int(factor * self.max_bytes): (self._hits_everywhere + hits) / max(1, self.asked)
            for factor, hits in zip(SIZES, self._hits_by_size, strict=True)
        }

    def by_ttl(self) -> dict[float, float]:
        """For each lifetime in seconds, the hit ratio that it would have given with today's size."""
        return {
            life_s: (self._hits_everywhere + hits) / max(1, self.asked)
            for life_s, hits in zip(self._lifetimes, self._hits_by_ttl, strict=True)
        }

    def recommendations(self) -> list[dict[str, object]]:
        """What the curves say about `CACHE_MAX_BYTES` and `CACHE_TTL`; empty while they say nothing."""
        if self.asked < _ENOUGH:
            return []
        found: list[dict[str, object]] = []
        sizes, ttls = self.by_size(), self.by_ttl()
        now = sizes[self.max_bytes]
        # The smallest size that brings nearly all of what more memory can bring.
        size = next(size for size in sorted(sizes) if sizes[size] >= sizes[max(sizes)] - 0.01)
        if sizes[size] > now + 0.05:
            message = (
                f"of {self.asked} sampled questions {now:.0%} were hits; "
                f"{size:,} bytes would have made it {sizes[size]:.0%}"
            )
            found.append(_recommend("cache-too-small", "warning", message, "CACHE_MAX_BYTES", self.max_bytes, size))
        longest = max(ttls, key=lambda life_s: (ttls[life_s], -life_s))
        if ttls[longest] > ttls[self.ttl_s] + 0.05 and longest > self.ttl_s:
            message = (
                f"of {self.asked} sampled questions {ttls[self.ttl_s]:.0%} were hits within {self.ttl_s:g} s; a "
                f"lifetime of {longest:g} s would have made it {ttls[longest]:.0%}, where answers may be that old"
            )
            found.append(_recommend("ttl-too-short", "info", message, "CACHE_TTL", self.ttl_s, longest))
        return found

    def _sample(self, share: float) -> None:
        """Follow the keys of this share from now on: those below a bound."""
        self._share = share
        self.first_unsampled = min(int(_SPACE * share), _SPACE - 1).to_bytes(8, "big")
        self._bytes_of_smallest = SIZES[0] * self.max_bytes * share

    def _play(self, digest: bytes, seen: _Seen, now: float) -> None:
        """Count one use where it would have been a hit."""
        within = self._within(digest)
        alive = now - seen.stored_at[0] < self.ttl_s
        for at, life_s in enumerate(self._lifetimes):
            if now - seen.stored_at[at] >= life_s:
                seen.stored_at[at] = now
            elif within <= self.max_bytes:
                self._hits_by_ttl[at] += 1
        seen.good_until = min(map(add, seen.stored_at, self._lifetimes))
        for at, factor in enumerate(SIZES):
            if alive and within <= factor * self.max_bytes:
                self._hits_by_size[at] += 1

    def _within(self, digest: bytes) -> float:
        """The bytes of the entries used since this one was, itself included; of all entries, not of the sample."""
        total = 0
        for other in reversed(self._stack):
            total += self._stack[other].bytes
            if other == digest:
                break
        return total / self._share

    def _halve(self) -> None:
        self._sample(self._share / 2)
        for digest in [key for key in self._stack if key >= self.first_unsampled]:
            self._bytes -= self._stack.pop(digest).bytes
        # What was counted on the larger sample counts half, so that old and new weigh alike.
        self.asked //= 2
        self._hits_everywhere /= 2
        self._hits_by_size = [hits / 2 for hits in self._hits_by_size]
        self._hits_by_ttl = [hits / 2 for hits in self._hits_by_ttl]


def _recommend(
    code: str, severity: str, message: str, setting: str, current: float, suggested: float
) -> dict[str, object]:
    return {
        "code": code,
        "severity": severity,
        "message": message,
        "setting": setting,
        "current": current,
        "suggested": suggested,
    }
