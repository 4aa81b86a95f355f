"""A table of moments in shared memory: what the meters and leases of all processes of one machine are made of."""

import asyncio
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from app.errors import StoreUnavailable
from app.stores.patience import patience

_SLOT = struct.Struct("<16sd8s")
_SIZE = _SLOT.size
_WAYS = 16
"""Places that a key may stand in: one bucket of 512 bytes, which is searched by `memmem`."""
_HEADER = struct.Struct("<8sQ16s")
_MAGIC = b"mnslots1"
_SPINS = 20
_NOBODY = bytes(8)


def boot_clock() -> float:
    """Seconds since the machine started, time asleep included where the system counts it; nobody sets this clock.

    One clock for all processes of one boot; the next boot begins anew.
    """
    return time.clock_gettime(_BOOT_CLOCK)


_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_id() -> bytes:
    """16 bytes that are the same for all processes of one boot."""
    try:
        told = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        # Not Linux. The difference of the clocks moves when the wall clock is set: then the table forgets once.
        told = str(round((time.time() - boot_clock()) / 60)).encode()
    return blake2b(told, digest_size=16).digest()


class Slots:
    """A moment and an owner for each of at most `capacity` keys, in a mapped file that all processes change.

    One hash table with buckets of 16. A key whose moment has passed makes room; where all 16 live, the one that
    would have passed first goes early: a meter then forgets what it counted, a lease ends. The table never grows.
    A table of another boot is emptied when it is opened, since its moments mean nothing any more.
    """

    def __init__(self, path: Path, *, capacity: int, clock: Callable[[], float] = boot_clock) -> None:
        """Map the file at `path`, made with mode 0600 where it is missing. Raises `OSError`."""
        self.early = 0
        """How many keys had to go before their time."""
        self._clock = clock
        self._buckets = max(1, capacity // _WAYS)
        size = _HEADER.size + self._buckets * _WAYS * _SIZE
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                header = _HEADER.pack(_MAGIC, self._buckets, boot_id())
                if os.fstat(self._file).st_size != size or os.pread(self._file, len(header), 0) != header:
                    # Empty again, and only what is used will take memory and time.
                    os.ftruncate(self._file, 0)
                    os.ftruncate(self._file, size)
                    os.pwrite(self._file, header, 0)
                self._map = mmap.mmap(self._file, size)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except BaseException:
            os.close(self._file)
            raise

    async def change(
        self, key: bytes, decide: Callable[[float, bytes], tuple[float, bytes] | None], *, deadline_s: float
    ) -> None:
        """Let `decide` see the seconds that the key's moment is ahead, and its owner, and set both; atomic.

        A key that is not there is 0 seconds ahead and has no owner. `decide` gives `None` to leave all as it is. It
        does not suspend unless another process is in here at the same time. Raises `StoreUnavailable` where that one
        does not leave within `deadline_s` (it was stopped); one that is killed leaves at once.
        """
        digest = blake2b(key, digest_size=16).digest()
        if not self._lock():
            await self._wait_for_lock(deadline_s)
        try:
            self._change(digest, decide)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def change_at_once(self, key: bytes, decide: Callable[[float, bytes], tuple[float, bytes] | None]) -> bool:
        """The same without waiting; `False`, and nothing changed, where another process is in here."""
        digest = blake2b(key, digest_size=16).digest()
        if not self._lock():
            return False
        try:
            self._change(digest, decide)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return True

    def close(self) -> None:
        """Unmap the file; it stays for the others."""
        self._map.close()
        os.close(self._file)

    def _change(self, digest: bytes, decide: Callable[[float, bytes], tuple[float, bytes] | None]) -> None:
        now = self._clock()
        start = _HEADER.size + int.from_bytes(digest[:8], "little") % self._buckets * _WAYS * _SIZE
        at = self._find(digest, start)
        ahead_s, owner = 0.0, _NOBODY
        if at is not None:
            _, moment, kept = _SLOT.unpack_from(self._map, at)
            if moment > now:
                ahead_s, owner = moment - now, kept
        decided = decide(ahead_s, owner)
        if decided is None:
            return
        ahead_s, owner = decided
        if at is None:
            if ahead_s <= 0:
                return
            at = self._make_room(start, now)
        _SLOT.pack_into(self._map, at, digest, now + ahead_s if ahead_s > 0 else 0.0, owner)

    def _find(self, digest: bytes, start: int) -> int | None:
        end = start + _WAYS * _SIZE
        at = self._map.find(digest, start, end)
        while at >= 0 and (at - start) % _SIZE:  # the same bytes across two slots, by an incredible chance
            at = self._map.find(digest, at + 1, end)
        return at if at >= 0 else None

    def _make_room(self, start: int, now: float) -> int:
        bucket = self._map[start : start + _WAYS * _SIZE]
        moments = [moment for _, moment, _ in _SLOT.iter_unpack(bucket)]
        first = min(moments)
        if first > now:
            self.early += 1
        return start + moments.index(first) * _SIZE

    def _lock(self) -> bool:
        # Whoever holds it leaves within microseconds, so asking again is cheaper than sleeping.
        for _ in range(_SPINS):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return True
        return False

    async def _wait_for_lock(self, deadline_s: float) -> None:
        try:
            async with patience(deadline_s):
                while not self._lock():  # noqa: ASYNC110 - another process will not set an event
                    await asyncio.sleep(0.0003)
        except TimeoutError:
            raise StoreUnavailable("another process holds the shared table and does not go on") from None
