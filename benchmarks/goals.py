"""The figures that we hold ourselves to, and what a run says about each of them."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.rows import HIT_MANY, HIT_ONE, MANY, ONE, SLOW_MODEL, STREAMS, TOOL_CALLED, TOOL_IDLE, Row, spread
from benchmarks.subjects import AGENT, BARE, BEFORE, FASTAPI, MNEMOSINE

Results = dict[str, Any]
LITELLM = "LiteLLM"
REASONS: dict[str, str] = {
    "uncached at 0 ms, 32 connections, direct tier, against FastAPI + `agent.run`": (
        "What a prompt costs is spread over many small parts: of our own time aiohttp takes 11 %, uvicorn 8 %, "
        "Starlette and FastAPI 11 %, the prompt service 7 %, SQLAlchemy 4 % (cProfile, 26 November 2026)."
    ),
    "cold start to the first answer, against before": (
        "Nearly all of it are imports: Pydantic AI 0.3 s of CPU, our own models and routes 0.25, SQLAlchemy 0.15, "
        "FastAPI 0.1; before imports all of these too. What was tried is in docs/decisions/0010-start.md. Health "
        "answers after 0.2 s."
    ),
    "installed size against before": (
        "SQLAlchemy, OpenAI's SDK, uvloop and Pydantic AI are two thirds of ours (18, 16, 14 and 11 MB), and before "
        "has all four too."
    ),
    "cached hit, 32 connections, against LiteLLM's cache": (
        "LiteLLM answers 160 to 260 hits a second here, bare ASGI with the same checks 20,000 to 30,000: a hundred "
        "times is near the limit. On a quiet machine it was 94 times (19,646 against 209, 26 November 2026)."
    ),
}
"""Why a goal is missed, by its name; looked into by hand and shown for as long as it is missed."""


@dataclass(frozen=True)
class Figure:
    """What was reached: ours over theirs, median and extremes over the rounds."""

    median: float
    low: float
    high: float
    by_cpu: float | None = None
    """The same by CPU time of the server, which other programs on the machine disturb less."""
    errors: int = 0
    """Wrong, refused or broken answers of ours in this row."""


@dataclass(frozen=True)
class Goal:
    """One line of the table: ours over theirs must be at least, or at most, `must`."""

    name: str
    must: float
    aim: float
    reached: Callable[[Results], Figure | None]
    form: Literal["times", "change"] = "times"
    at_least: bool = True
    words: tuple[str, str] | None = None
    """What to show for `must` and `aim` where the number alone would not be understood."""

    def verdict(self, figure: Figure | None) -> str:
        """`aim`, `yes`, `no`, or `not measured`."""
        if figure is None:
            return "not measured"
        if figure.errors:
            return "no"
        for name, bound in (("aim", self.aim), ("yes", self.must)):
            if figure.median >= bound if self.at_least else figure.median <= bound:
                return name
        return "no"

    def shown(self, value: float) -> str:
        if self.form == "change":
            percent = 100 * (value - 1)
            return f"{percent:+,.0f} %" if abs(percent) >= 100 or percent == round(percent) else f"{percent:+.1f} %"
        return f"{value:,.0f}×" if value >= 20 else f"{value:.2f}×"


def ratio(
    results: Results, ours: tuple[Row, str], theirs: tuple[Row, str], key: str = "per_second", *, cpu: bool = False
) -> Figure | None:
    """Ours over theirs in `key`; of each round where both have as many, else of the medians."""
    our, their = _runs(results, *ours), _runs(results, *theirs)
    if our is None or their is None or not statistics.median(their[key]):
        return None
    by_cpu = statistics.median(their["cpu_ms"]) / statistics.median(our["cpu_ms"]) if cpu else None
    errors = int(sum(our["errors"]) + sum(our["unfinished"]))
    if len(our[key]) == len(their[key]) and all(their[key]):
        values = spread([mine / other for mine, other in zip(our[key], their[key], strict=True)])
        return Figure(values["median"], values["low"], values["high"], by_cpu, errors)
    base = statistics.median(their[key])
    mine = spread(our[key])
    return Figure(mine["median"] / base, mine["low"] / base, mine["high"] / base, by_cpu, errors)


def against(name: str, row: Row, key: str = "per_second", *, cpu: bool = False) -> Callable[[Results], Figure | None]:
    """Ours over theirs in the same row."""
    return lambda results: ratio(results, (row, MNEMOSINE.name), (row, name), key, cpu=cpu)


def _runs(results: Results, row: Row, subject: str) -> dict[str, list[float]] | None:
    found = next((one["subjects"] for one in results.get("rows", ()) if one["name"] == row.name), {})
    return found.get(subject)


def _of(ours: list[float] | None, theirs: list[float] | None) -> Figure | None:
    if not ours or not theirs:
        return None
    base = statistics.median(theirs)
    values = spread([one / base for one in ours])
    return Figure(values["median"], values["low"], values["high"])


def _cold_start(results: Results) -> Figure | None:
    starts = results.get("cold_start_s", {})
    return _of(starts.get(MNEMOSINE.name), starts.get(BEFORE.name))


def _memory(results: Results) -> Figure | None:
    after = {one["subject"]: one["after"] for one in results.get("memory", ()) if one["workers"] == 4}
    return _of(after.get(MNEMOSINE.name), after.get(BEFORE.name))


def _size(theirs: str) -> Callable[[Results], Figure | None]:
    def reached(results: Results) -> Figure | None:
        sizes = {name: [float(one["bytes"])] for name, one in results.get("installed", {}).items()}
        return _of(sizes.get(MNEMOSINE.name), sizes.get(theirs))

    return reached


def _hit_growth(results: Results) -> Figure | None:
    growth = results.get("growth")
    return growth and _of(growth["hit_us"]["hit many"], growth["hit_us"]["hit few"])


def _history_growth(results: Results) -> Figure | None:
    growth = results.get("growth")
    return growth and _of(growth["prompt_ms"]["1000"], growth["prompt_ms"]["10"])


GOALS = (
    Goal("cached hit, 32 connections, one worker, against bare ASGI with the same checks", 0.5, 0.65,
         against(BARE.name, HIT_MANY, cpu=True)),
    Goal("uncached at 0 ms, 32 connections, direct tier, against FastAPI + `agent.run`", 6, 12,
         against(AGENT.name, MANY, cpu=True)),
    Goal("the same, an agent with one tool that is not called", 1.5, 2, against(AGENT.name, TOOL_IDLE, cpu=True)),
    Goal("the same, an agent with one tool that is called", 1.5, 2, against(AGENT.name, TOOL_CALLED, cpu=True)),
    Goal("uncached at 0 ms, direct tier: CPU a prompt against FastAPI passing through", 2.5, 1.5,
         against(FASTAPI.name, MANY, "cpu_ms"), at_least=False),
    Goal("20-chunk streams, 200 connections: streams a second against FastAPI + `run_stream`", 4, 8,
         against(AGENT.name, STREAMS, cpu=True)),
    Goal("20-chunk streams, 200 connections: time to first token against FastAPI + `run_stream`", 0.25, 0.125,
         against(AGENT.name, STREAMS, "first_token_p50"), at_least=False, words=("a quarter", "an eighth")),
    Goal("300 ms model, 200 connections, direct tier: rate against bare ASGI passing through", 0.85, 0.95,
         against(BARE.name, SLOW_MODEL)),
    Goal("response time uncached (P50, 1 connection) against before", 0.1, 0.05,
         against(BEFORE.name, ONE, "p50"), "change", at_least=False),
    Goal("response time cached (P50, 1 connection) against before", 0.01, 0.005,
         lambda results: ratio(results, (HIT_ONE, MNEMOSINE.name), (ONE, BEFORE.name), "p50"), "change",
         at_least=False),
    Goal("concurrent requests (300 ms model, 200 connections) against before", 21, 41,
         against(BEFORE.name, SLOW_MODEL), "change"),
    Goal("memory (PSS), four workers after load, against before", 0.5, 0.35, _memory, "change", at_least=False),
    Goal("cold start to the first answer, against before", 0.35, 0.2, _cold_start, "change", at_least=False),
    Goal("installed size against before", 0.6, 0.5, _size(BEFORE.name), "change", at_least=False),
    Goal("cost of a hit among 1,000,000 entries against among 1,000", 1.25, 1.25, _hit_growth, at_least=False,
         words=("flat", "flat")),
    Goal("cost of a prompt after 1,000 messages against after 10", 100, 100, _history_growth, at_least=False,
         words=("linear: at most 100×", "linear")),
)  # fmt: skip
PEER_GOALS = (
    Goal("cached hit, 32 connections, against LiteLLM's cache", 100, 200, against(LITELLM, HIT_MANY, cpu=True)),
    Goal("installed size against LiteLLM", 0.2, 0.15, _size(LITELLM), "change", at_least=False),
)
