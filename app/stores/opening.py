"""Opening a SQLite file that other processes open too."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Be the only process, and thread, that opens a file of `folder`, for the length of the block.

    Two that switch a new file to WAL at once deadlock, and SQLite tells one of them at once that it is locked, whatever
    time-out it was given (https://www.sqlite.org/c3ref/busy_handler.html). Blocks, so it is for threads.
    """
    lock = os.open(folder / "opening.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
