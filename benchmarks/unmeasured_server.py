"""Mnemosine that counts nothing, for comparison: `python -m benchmarks.unmeasured_server serve …`."""

from typing import Any

from app.cli import main
from app.core.metrics import Metrics
from app.core.story import Stories
from app.core.totals import Totals


def _nothing(*_: Any, **__: Any) -> float:
    return 0.0


async def _no_report(*_: Any) -> None:
    pass


if __name__ == "__main__":
    for owner, name, other in (
        (Metrics, "record_request", _nothing),
        (Stories, "add", _nothing),
        (Totals, "report", _no_report),
    ):
        assert callable(getattr(owner, name)), name
        setattr(owner, name, other)
    main()
