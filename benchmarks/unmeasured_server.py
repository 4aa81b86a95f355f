"""Mnemosine that can stop to count, for comparison: `python -m benchmarks.unmeasured_server serve …`.

A signal says what it records from then on: `NOTHING`, `REQUESTS` or `ALL`. What it does for each request are the
series, the stories, the counts and the curve of the cache; what it does by the clock is the report twice a second,
with all that is due in it. The ledger goes on in any case, since what callers are charged for is no measurement, and
so do the request id and `Server-Timing`, which clients see.

One process that does it in turn, and not several: of two equal processes one is easily 3 % slower, by where its memory
lies and by which questions the cache's curve has drawn.
"""

import signal
from typing import Any

from app.cli import main
from app.core.cache_service import CacheService
from app.core.metrics import Metrics
from app.core.totals import Totals

NOTHING, REQUESTS, ALL = signal.SIGRTMIN, signal.SIGRTMIN + 1, signal.SIGRTMIN + 2


def _nothing(*_: Any, **__: Any) -> None:
    pass


async def _no_report(*_: Any) -> None:
    pass


INSTEAD: tuple[tuple[type, str, Any], ...] = (
    (Metrics, "record_request", _nothing),
    (Metrics, "record_hit", _nothing),
    (CacheService, "count_hit", _nothing),
    (Totals, "report", _no_report),
)
"""Whose method records, which one, and what does nothing in its place; the last one by the clock."""


if __name__ == "__main__":
    recording = [getattr(owner, name) for owner, name, _ in INSTEAD]

    def switch(signum: int, _: object) -> None:
        for (owner, name, nothing), records in zip(INSTEAD, recording, strict=True):
            off = signum == NOTHING or (signum == REQUESTS and owner is Totals)
            setattr(owner, name, nothing if off else records)

    for number in (NOTHING, REQUESTS, ALL):
        signal.signal(number, switch)
    main()
