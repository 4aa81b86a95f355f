"""Bytes kept in this process: bounded, least recently used first out, each with its time to live."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from time import monotonic

ENTRY_OVERHEAD_BYTES = 450
"""What one entry costs beside its value: key, table slot, and the objects that hold them (CPython 3.11)."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One value with the moments of its life, on the monotonic clock."""

    value: bytes
    stored_at: float
    expires_at: float
    generation: int


class MemoryStore:
    """At most `max_bytes` of values and their bookkeeping, none larger than `max_entry_bytes`; look-ups are O(1)."""

    def __init__(
        self, *, max_bytes: int, max_entry_bytes: int = 256 * 1024, clock: Callable[[], float] = monotonic
    ) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self.expirations = 0
        self._max_entry_bytes = max_entry_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, *, generation: int) -> Kept | None:
        """What is kept under `key`, unless it has expired or was stored in another generation."""
        kept = self._entries.get(key)
        if kept is None:
            return None
        if kept.generation != generation or self._clock() >= kept.expires_at:
            self._drop(key)
            self.expirations += 1
            return None
        self._entries.move_to_end(key)
        return kept

    def put(self, key: bytes, value: bytes, *, ttl_s: float, generation: int) -> bool:
        """Keep `value` for `ttl_s` seconds; `False` where it is too large to be kept."""
        self._drop(key)
        size = len(value) + ENTRY_OVERHEAD_BYTES
        if len(value) > self._max_entry_bytes or size > self.max_bytes:
            return False
        now = self._clock()
        self._entries[key] = Kept(value, now, now + ttl_s, generation)
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evictions += 1
        return True

    def age_s(self, kept: Kept) -> float:
        """Seconds since `kept` was stored."""
        return self._clock() - kept.stored_at

    def left_s(self, kept: Kept) -> float:
        """Seconds that `kept` has to live."""
        return kept.expires_at - self._clock()

    def remove_expired(self, *, generation: int, at_most: int = 10_000) -> int:
        """Drop what has expired among the `at_most` least recently used entries; gives how many those were."""
        now = self._clock()
        old = [
            key
            for key, kept in islice(self._entries.items(), at_most)
            if kept.generation != generation or now >= kept.expires_at
        ]
        for key in old:
            self._drop(key)
        self.expirations += len(old)
        return len(old)

    def clear(self) -> int:
        """Drop everything; gives how many entries that were."""
        dropped = len(self._entries)
        self._entries.clear()
        self.bytes = 0
        return dropped

    def _drop(self, key: bytes) -> None:
        kept = self._entries.pop(key, None)
        if kept is not None:
            self.bytes -= len(kept.value) + ENTRY_OVERHEAD_BYTES
