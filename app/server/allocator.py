"""How the C library keeps memory that was given back to it."""

import ctypes
import sys
from contextlib import suppress

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h of glibc


def return_memory() -> None:
    """Give large blocks back to the system when they are freed, and keep one heap for all threads. Only glibc has it.

    By itself glibc learns from the first login that blocks of 19 MiB come and go (argon2), and keeps one for ever;
    and it makes a heap for each thread, of which ours, that wait for one lock anyway, have no use: 20 MB less of 396
    over four workers.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)
        libc.mallopt(_M_ARENA_MAX, 1)
