"""`mnemosine bench`: a bounded load on a server that runs somewhere, and a report to compare with an earlier one.

Apart from the house: it knows a server only by its address and the contract, so it measures another version, or the
backend that Mnemosine is to replace, just as well. It imports nothing of the server.
"""

import asyncio
import http.client
import json
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from app import __version__
from app.errors import MnemosineError
from app.load import NONCE, Load, Report, run_load

PROMPT_PATH = "/api/v1/agent/prompt"
METRICS_PATH = "/api/v1/performance/metrics"
HOT_QUESTIONS = 5
_KINDS = ("cold", "hot", "stream", "mixed")
_SHARE_OF_TIME = {"cold": 0.2, "hot": 0.15, "stream": 0.2, "mixed": 0.45}
_SHARE_OF_REQUESTS = {"cold": 0.05, "hot": 0.25, "stream": 0.05, "mixed": 0.65}
_UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent, and how much of it at most."""

    url: str
    credential: str = field(repr=False)
    connections: int = 10
    seconds: float = 20.0
    """For all parts together; what is under way then may take as long again, at most 30 s."""
    requests: int = 20_000
    """In all, warm-up included."""
    hot: float = 0.8
    """The share of the mixed load that asks what was asked before."""
    agent: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. `good` is the change that the specification asks for, as a ratio."""

    name: str
    unit: str
    key: str
    good: float | None = None


ROWS = (
    Row("response time, new question, P50", "ms", "cold_p50_ms", 0.25),
    Row("response time, new question, P95", "ms", "cold_p95_ms"),
    Row("response time, new question, P99", "ms", "cold_p99_ms"),
    Row("response time, known question, P50", "ms", "hot_p50_ms", 0.25),
    Row("response time, known question, P95", "ms", "hot_p95_ms"),
    Row("response time, known question, P99", "ms", "hot_p99_ms"),
    Row("first text of a stream, P50", "ms", "first_text_p50_ms"),
    Row("concurrent requests, answered a second", "", "per_second", 4.0),
    Row("response time under that load, P95", "ms", "mixed_p95_ms"),
    Row("memory after the load", "MB", "memory_mb", 0.6),
)
"""Cold start and installed size cannot be seen from outside; `make bench` measures them."""


def run(plan: Plan, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Load `plan.url` and give what was met: figures by the keys of `ROWS`, answers and failures by status.

    Raises `MnemosineError` where the server cannot be reached at all.
    """
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_run(plan, tell))
    return uvloop.run(_run(plan, tell))


async def _run(plan: Plan, tell: Callable[[str], None]) -> dict[str, Any]:
    mark = secrets.token_hex(4)
    hot = [_body(plan, f"bench {mark}: say one short word, number {number}.") for number in range(HOT_QUESTIONS)]
    cold = [_body(plan, f"bench {mark} {NONCE}: say one short word.")]
    reports: dict[str, Report] = {}
    for kind in _KINDS:
        bodies = {"cold": cold, "hot": hot, "mixed": _mixed(hot, cold[0], plan.hot)}.get(kind) or [
            _body(plan, f"bench {mark} {NONCE}: say one short sentence.", stream=True)
        ]
        load = Load(
            url=plan.url + PROMPT_PATH,
            bodies=bodies,
            headers={"authorization": f"Bearer {plan.credential}"},
            connections=plan.connections if kind == "mixed" else 1,
            seconds=plan.seconds * _SHARE_OF_TIME[kind],
            at_most=max(1, math.floor(plan.requests * _SHARE_OF_REQUESTS[kind])),
            drain_s=min(30.0, max(5.0, plan.seconds)),
            streamed=kind == "stream",
            check="answer",
        )
        tell(f"{kind}: {load.connections} connections, {load.seconds:.1f} s, at most {load.at_most:,} requests")
        try:
            reports[kind] = await run_load(load)
        except ConnectionError as error:
            raise MnemosineError(f"{error}; is it the right URL, and does the server run?") from error
    return _told(plan, reports)


def _body(plan: Plan, message: str, **fields: Any) -> str:
    return json.dumps({"message": message, **({"agent": plan.agent} if plan.agent else {}), **fields})


def _mixed(hot: list[str], cold: str, share: float) -> list[str]:
    """A hundred bodies of which the share is hot, the cold ones spread evenly among them."""
    count = round(100 * share)
    is_hot = [(at + 1) * count // 100 > at * count // 100 for at in range(100)]
    known = cycle(hot)
    return [next(known) if one else cold for one in is_hot]


def _told(plan: Plan, reports: dict[str, Report]) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    for report in reports.values():
        statuses["200"] += report.completed
        statuses.update(report.errors)
    figures: dict[str, float | None] = {
        f"{kind}_{name}_ms": getattr(reports[kind].latency_ms, name) if reports[kind].latency_ms.count else None
        for kind in ("cold", "hot", "mixed")
        for name in ("p50", "p95", "p99")
    }
    first = reports["stream"].first_token_ms
    figures["first_text_p50_ms"] = first.p50 if first.count else None
    figures["per_second"] = reports["mixed"].per_second if reports["mixed"].answered else None
    figures["memory_mb"] = _memory_mb(plan)
    asked = {key: value for key, value in asdict(plan).items() if key not in ("credential", "url")}
    return {
        "version": __version__,
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "plan": asked,
        "figures": figures,
        "statuses": {name: count for name, count in sorted(statuses.items()) if count},
        "examples": [example for report in reports.values() for example in report.examples][:3],
    }


def _memory_mb(plan: Plan) -> float | None:
    """Resident memory of all workers, where the server tells it to this caller."""
    request = Request(plan.url + METRICS_PATH, headers={"authorization": f"Bearer {plan.credential}"})  # noqa: S310
    try:
        with urlopen(request, timeout=10) as reply:  # noqa: S310 - the scheme was looked at
            return int(json.load(reply)["process"]["rss_bytes"]) / 1e6
    except (HTTPError, URLError, OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None


def checked_url(url: str) -> str:
    """`url` without a path. Raises `MnemosineError` where it is no address of a server."""
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.path not in ("", "/") or parts.query or parts.username:
        raise MnemosineError(f"URL must be scheme, host and port alone, got {url!r}; example: http://127.0.0.1:8000")
    return f"{parts.scheme}://{parts.netloc}"


def is_here(url: str) -> bool:
    """Whether `url` is this machine itself."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def any_answered(report: dict[str, Any]) -> bool:
    """Whether anything at all succeeded."""
    return report["statuses"].get("200", 0) > 0


def read_baseline(text: str) -> dict[str, Any]:
    """The figures of an earlier report. Raises `MnemosineError` where `text` is none."""
    try:
        figures = json.loads(text)["figures"]
        return {row.key: None if figures.get(row.key) is None else float(figures[row.key]) for row in ROWS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MnemosineError("the baseline is no report of `mnemosine bench --save`") from error


def page(url: str, report: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """The report as people read it; with a baseline, how it changed and what the specification asks for."""
    plan, figures = report["plan"], report["figures"]
    share = f"{100 * plan['hot']:.0f} % known questions"
    lines = [f"{url}, {report['at']}: {plan['connections']} connections, {plan['seconds']:g} s, {share}", ""]
    width = max(len(row.name) for row in ROWS)
    head = f"{'':{width}}  {'now':>12}"
    lines.append(head if baseline is None else f"{head}  {'baseline':>12}  {'change':>10}  {'asked for':>10}")
    for row in ROWS:
        now = figures.get(row.key)
        line = f"{row.name:{width}}  {_shown(now, row.unit):>12}"
        if baseline is not None:
            then = baseline.get(row.key)
            change = None if now is None or not then else now / then
            line += f"  {_shown(then, row.unit):>12}  {_percent(change):>10}  {_percent(row.good):>10}"
        lines.append(line.rstrip())
    answers = ", ".join(f"{name}: {count:,}" for name, count in report["statuses"].items())
    lines += ["", f"answers   {answers or 'none'}"]
    lines += [f"example   {' '.join(example.split())[:160]}" for example in report["examples"]]
    if "status 429" in report["statuses"]:
        lines.append("note      429 is the server's limit on this caller; RATE_LIMIT_PER_MINUTE sets it")
    if _UNFINISHED in report["statuses"]:
        lines.append("note      unfinished are requests that had no answer when the time was over")
    return "\n".join(lines)


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    number = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{number} {unit}".rstrip()


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{100 * (ratio - 1):+,.1f} %"
