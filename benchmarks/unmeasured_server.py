"""Mnemosine that can stop to count, for comparison: `python -m benchmarks.unmeasured_server serve …`.

SIGUSR1 ends all recording, SIGUSR2 begins it again. What then does not happen: the series of requests, their stories,
the counts and the curve of the cache, and the report twice a second with what is due in it. The ledger goes on, since
what callers are charged for is no measurement, and so do the request id and `Server-Timing`, which clients see.

One process that does both in turn, and not two: of two equal processes one is easily 3 % slower, by where its memory
lies and by which questions the cache's curve has drawn.
"""

import signal
from typing import Any

from app.cli import main
from app.core.cache_service import CacheService
from app.core.metrics import Metrics
from app.core.story import Stories
from app.core.totals import Totals

STOP, GO_ON = signal.SIGUSR1, signal.SIGUSR2


def _nothing(*_: Any, **__: Any) -> float:
    return 0.0


async def _no_report(*_: Any) -> None:
    pass


INSTEAD: tuple[tuple[type, str, Any], ...] = (
    (Metrics, "record_request", _nothing),
    (Stories, "add", _nothing),
    (CacheService, "count_hit", _nothing),
    (Totals, "report", _no_report),
)
"""Whose method records, which one, and what does nothing in its place."""


if __name__ == "__main__":
    recording = [getattr(owner, name) for owner, name, _ in INSTEAD]

    def switch(signum: int, _: object) -> None:
        for (owner, name, nothing), records in zip(INSTEAD, recording, strict=True):
            setattr(owner, name, nothing if signum == STOP else records)

    signal.signal(STOP, switch)
    signal.signal(GO_ON, switch)
    main()
