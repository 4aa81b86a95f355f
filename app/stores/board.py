"""A board that all workers of this machine see: a few counters in one page of shared memory."""

import fcntl
import mmap
import os
from functools import lru_cache
from pathlib import Path
from typing import Self
from zlib import crc32

from app.stores.protocol import Counter

_PLACES: dict[Counter, int] = {"cache": 0, "credentials": 1, "agents": 2, "shelf": 3, "listeners": 4}
_SIZE = 4096
_FIRST_SHARED = 16


@lru_cache(1024)
def place_of(counter: Counter) -> int:
    """Where the number of `counter` stands; names beyond these share the places that remain."""
    place = _PLACES.get(counter)
    if place is None:
        place = _FIRST_SHARED + crc32(counter.encode()) % (_SIZE // 8 - _FIRST_SHARED)
    return place


class Board:
    """Generation counters in a mapped file. What was learnt under an older generation is no longer valid.

    Reading is a load from memory; bumping takes a lock on the file. All processes that map the same file see a bump
    at once. The counters only grow and survive restarts. Readers beyond this machine need another way.
    """

    def __init__(self, path: Path) -> None:
        """Map the file at `path`, made with mode 0600 where it is missing. Raises `OSError`."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(self._file, _SIZE)
            self._map = mmap.mmap(self._file, _SIZE)
        except BaseException:
            os.close(self._file)
            raise
        # Aligned 64-bit loads and stores: a reader sees the old number or the new one, nothing in between.
        self._counters = memoryview(self._map).cast("Q")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generation(self, counter: Counter) -> int:
        """The present generation of `counter`."""
        return self._counters[place_of(counter)]

    def bump(self, counter: Counter) -> int:
        """Begin a new generation of `counter`, for every process; gives its number."""
        # A lock belongs to an open file: each Board has its own, so threads exclude each other only by the GIL.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            number = self._counters[place_of(counter)] + 1
            self._counters[place_of(counter)] = number
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return number

    def close(self) -> None:
        """Unmap the file; it stays for the others."""
        self._counters.release()
        self._map.close()
        os.close(self._file)
