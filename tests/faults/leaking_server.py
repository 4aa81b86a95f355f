"""`python -m tests.faults.leaking_server` is `mnemosine` with a thread that lets go of neither memory nor files."""

import threading
import time
from typing import IO

from app.cli import main

EVERY_S = 0.25
MIB_A_MINUTE = 60 / EVERY_S
"""One each time, and one file."""


def leak() -> None:
    """Never ends."""
    kept: list[tuple[bytes, IO[bytes]]] = []
    while True:
        kept.append((b"x" * 2**20, open("/dev/null", "rb")))  # noqa: SIM115
        time.sleep(EVERY_S)


if __name__ == "__main__":
    threading.Thread(target=leak, daemon=True).start()
    main()
