"""Fresh names for what happens once, without a system call for each."""

import os
from time import time_ns

_DRAWN = 4096


class _Pool:
    """Bytes of the system's random source, drawn many at a time; each is given out once."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        at = self._at
        taken = self._bytes[at : at + size]
        if len(taken) < size:
            self._bytes, at = os.urandom(_DRAWN), 0
            taken = self._bytes[:size]
        self._at = at + size
        return taken

    def forget(self) -> None:
        self._bytes, self._at = b"", 0


_pool = _Pool()
# Two workers of one arbiter must not give out the same names.
os.register_at_fork(after_in_child=_pool.forget)


def new_id() -> str:
    """32 hexadecimal digits, unguessable. For the event loop alone: threads could be given the same."""
    return _pool.take(16).hex()


def new_uuid7() -> str:
    """A UUID of version 7, which begins with its time, as RFC 9562 writes it. For the event loop alone."""
    rest = _pool.take(10)
    number = (
        ((time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(rest)) & ~(0xF << 76 | 0x3 << 62)
        | 7 << 76
        | 2 << 62
    )
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
