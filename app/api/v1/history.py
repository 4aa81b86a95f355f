"""The last minutes, hour or day in points, for charts."""

import asyncio
from dataclasses import asdict, fields
from time import monotonic, time
from typing import Literal
from weakref import WeakKeyDictionary

from fastapi import APIRouter
from pydantic import BaseModel

from app.api.dependencies import CurrentCaller, RuntimeDep
from app.core.history import Point, points
from app.core.totals import Totals

router = APIRouter(prefix="/api/v1/performance", tags=["performance"])

Range = Literal["5m", "1h", "24h"]
_RANGES_S: dict[Range, tuple[float, float]] = {"5m": (300, 1), "1h": (3600, 10), "24h": (86_400, 60)}
"""How far back each goes, and for how long an answer is remembered (a day is some 400 moments to read)."""


POINT_NAMES = tuple(field.name for field in fields(Point))


class HistoryReply(BaseModel):
    """Points in columns, as chart libraries want them: `columns[name][i]` was true up to `columns["at"][i]`."""

    model_config = {
        "json_schema_extra": {
            "examples": [
                {"range": "5m", "columns": {"at": [1795608000.0], "requests_per_second": [12.4], "cpu_percent": [31.0]}}
            ]
        }
    }

    range: Range
    columns: dict[str, list[float | None]]
    """`at` is in seconds since 1970; what is unknown (no request, no percentile) is `null`."""


@router.get("/history")
async def history(caller: CurrentCaller, runtime: RuntimeDep, range: Range = "5m") -> HistoryReply:  # noqa: A002
    """What was measured over the last five minutes, hour or day, restarts included."""
    reach_s, fresh_s = _RANGES_S[range]
    known = _known.setdefault(runtime.totals, {})
    if range not in known or monotonic() - known[range][0] > fresh_s:
        reply = await asyncio.to_thread(_read, runtime.totals, range, reach_s)
        known[range] = (monotonic(), reply)
    return known[range][1]


_known: WeakKeyDictionary[Totals, dict[Range, tuple[float, HistoryReply]]] = WeakKeyDictionary()


def _read(totals: Totals, range: Range, reach_s: float) -> HistoryReply:  # noqa: A002
    scoreboard = totals.scoreboard
    since = scoreboard.now() - reach_s
    # One stretch more, so that the first point in reach has a moment before it.
    found = [asdict(point) for point in points(scoreboard.moments(since - 330)) if point.at >= since]
    columns = {name: [each[name] for each in found] for name in POINT_NAMES}
    # Should the wall clock have been set since the start, then what it says now is what whoever looks goes by.
    set_by_s = time() - scoreboard.now()
    columns["at"] = [at + set_by_s for at in columns["at"]]
    return HistoryReply(range=range, columns=columns)
