"""In a process with this folder in its PYTHONPATH a signal sets the wall clock, by as many seconds as a file says.

`time_machine` moves the wall clock wherever Python reads it, and no other clock.
"""

import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

SET_CLOCK = signal.SIGRTMIN + 4

if "CLOCK_SHIFT_FILE" in os.environ:
    import time_machine

    _traveller = time_machine.travel(datetime.now(UTC), tick=True).start()

    def _set_clock(*_: object) -> None:
        _traveller.shift(timedelta(seconds=float(Path(os.environ["CLOCK_SHIFT_FILE"]).read_text())))

    signal.signal(SET_CLOCK, _set_clock)
