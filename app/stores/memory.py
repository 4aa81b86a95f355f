"""Bytes kept in this process: bounded, least recently used first out, each with its time to live."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from time import monotonic

ENTRY_OVERHEAD_BYTES = 450
"""What one entry costs beside its value: key, table slot, and the objects that hold them (CPython 3.11)."""


@dataclass(slots=True)
class Kept:
    """One value with the moments of its life, on the monotonic clock."""

    value: bytes
    stored_at: float
    expires_at: float
    generation: object
    tag: str = ""
    made: bytes = b""
    """What was made of the value and is wanted again; see `attach`."""


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

    def get(self, key: bytes, *, generation: object) -> Kept | None:
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

    def put(
        self, key: bytes, value: bytes, *, ttl_s: float, generation: object, tag: str = "", age_s: float = 0.0
    ) -> bool:
        """Keep `value` for `ttl_s` more seconds; `False` where it is too large to be kept.

        `tag` is for clearing by it; `age_s` is how old it is already.
        """
        self._drop(key)
        size = len(value) + ENTRY_OVERHEAD_BYTES
        if len(value) > self._max_entry_bytes or size > self.max_bytes:
            return False
        now = self._clock()
        self._entries[key] = Kept(value, now - age_s, now + ttl_s, generation, tag)
        self.bytes += size
        self._make_room()
        return True

    def attach(self, key: bytes, kept: Kept, made: bytes) -> None:
        """Keep what was `made` of a value beside it, as long as that lives; its bytes count like those of values."""
        size = len(kept.value) + len(made) + ENTRY_OVERHEAD_BYTES
        if self._entries.get(key) is not kept or kept.made or size > self.max_bytes:
            return
        kept.made = made
        self.bytes += len(made)
        self._entries.move_to_end(key)
        self._make_room()

    def age_s(self, kept: Kept) -> float:
        """Seconds since `kept` was stored."""
        return self._clock() - kept.stored_at

    def left_s(self, kept: Kept) -> float:
        """Seconds that `kept` has to live."""
        return kept.expires_at - self._clock()

    def remove_expired(self, current: Callable[[str], object], *, at_most: int = 10_000) -> int:
        """Drop what has expired among the `at_most` least recently used entries; gives how many those were.

        `current` gives the generation that is current for a tag.
        """
        now = self._clock()
        old = [
            key
            for key, kept in islice(self._entries.items(), at_most)
            if now >= kept.expires_at or kept.generation != current(kept.tag)
        ]
        for key in old:
            self._drop(key)
        self.expirations += len(old)
        return len(old)

    def clear(self, *, tag: str | None = None) -> int:
        """Drop everything, or what has this tag; gives how many entries that were."""
        if tag is not None:
            tagged = [key for key, kept in self._entries.items() if kept.tag == tag]
            for key in tagged:
                self._drop(key)
            return len(tagged)
        dropped = len(self._entries)
        self._entries.clear()
        self.bytes = 0
        return dropped

    def _make_room(self) -> None:
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evictions += 1

    def _drop(self, key: bytes) -> None:
        kept = self._entries.pop(key, None)
        if kept is not None:
            self.bytes -= len(kept.value) + len(kept.made) + ENTRY_OVERHEAD_BYTES
