"""Counting and measuring: counters, levels and log-bucket histograms that add up over workers and over time.

Everything recorded only grows (levels apart), so a window is the difference of two snapshots and a server is the sum
of its workers. Belongs to the event loop's thread; recording takes no lock. Requests are noted down as they end and
worked out together; whoever reads finds all of them.
"""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from time import time
from typing import Any, Literal
from uuid import uuid4

from app.core.story import Ended, Hit, Stories, Story

RELATIVE_ERROR = 0.005
"""A percentile is this close to the true one, or closer: half of the one per cent that is promised."""

# DDSketch (Masson, Rim, Lee: VLDB 2019): bucket i holds (gamma^i, gamma^(i+1)], so its middle is off by at most this.
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_E = 1 / log(_GAMMA)
_SMALLEST = 1e-6
_LARGEST = 1e9
_OFFSET = 1 - int(log(_SMALLEST) * _PER_E - 1)

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Upper bounds of the buckets that Prometheus sees; one request of each is kept as an example."""

Window = Literal["1m", "5m", "60m"]
WINDOWS_S: dict[Window, float] = {"1m": 60.0, "5m": 300.0, "60m": 3600.0}

Key = tuple[str, ...]
"""A series: the name of its family, then the values of its labels."""

_TOGETHER = 64
"""So many requests are worked out together, which costs each a third of what it would cost alone."""

OTHER = "other"
"""The label value of whatever came after a family was full."""


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        """Count `amount` more."""
        self.value += amount


class Histogram:
    """A distribution of values above zero, in buckets of constant relative width; zero has a bucket of its own."""

    __slots__ = ("buckets", "largest", "total")

    def __init__(self) -> None:
        self.buckets = Tally[int]()
        self.total = 0.0
        self.largest = 0.0

    def record(self, *values: float) -> None:
        """Count these `values`. What is not above a millionth counts as zero, above 1e9 as 1e9."""
        buckets, largest, total = self.buckets, self.largest, self.total
        for value in values:
            if value > largest:
                value = largest = min(value, _LARGEST)
            if value > _SMALLEST:
                total += value
                index = int(log(value) * _PER_E + _OFFSET)
            else:
                index = 0
            buckets[index] = buckets.get(index, 0) + 1
        self.largest, self.total = largest, total

    def record_all(self, values: Sequence[float]) -> None:
        """The same, which costs each of many `values` about half as much."""
        smallest, largest = min(values), max(values)
        if not (smallest > _SMALLEST and largest <= _LARGEST):
            self.record(*values)
            return
        self.buckets.update([int(exponent * _PER_E + _OFFSET) for exponent in map(log, values)])
        self.total += sum(values)
        self.largest = max(self.largest, largest)

    def add(self, other: "Histogram") -> None:
        """Count all that the `other` has recorded."""
        buckets = self.buckets
        for index, count in other.buckets.items():
            buckets[index] = buckets.get(index, 0) + count
        self.total += other.total
        self.largest = max(self.largest, other.largest)


@dataclass(slots=True)
class Distribution:
    """What a histogram held at one moment, or in one window."""

    buckets: dict[int, int] = field(default_factory=dict[int, int])
    total: float = 0.0
    largest: float = 0.0

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.buckets.values())

    @property
    def mean(self) -> float:
        """The exact mean; 0 where there are no values."""
        count = self.count
        return self.total / count if count else 0.0

    def percentile(self, q: float) -> float:
        """The value below which the share `q` (0 to 1) lies, within `RELATIVE_ERROR`; 0 where there are no values."""
        rank = q * (self.count - 1)
        seen = 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen > rank:
                return min(_middle(index), self.largest)
        return 0.0

    def up_to(self, bounds: Sequence[float]) -> list[tuple[float, int]]:
        """For each of the rising `bounds`, how many values are at most that; within `RELATIVE_ERROR` of the bound."""
        counted: list[tuple[float, int]] = []
        places = sorted(self.buckets)
        at = seen = 0
        for bound in bounds:
            while at < len(places) and _middle(places[at]) <= bound:
                seen += self.buckets[places[at]]
                at += 1
            counted.append((bound, seen))
        return counted

    def plus(self, other: "Distribution") -> "Distribution":
        """Both together, exactly."""
        buckets = dict(self.buckets)
        for index, count in other.buckets.items():
            buckets[index] = buckets.get(index, 0) + count
        return Distribution(buckets, self.total + other.total, max(self.largest, other.largest))

    def minus(self, earlier: "Distribution") -> "Distribution":
        """What came since `earlier`. Its largest value is known to within `RELATIVE_ERROR` only."""
        buckets = {
            index: count - earlier.buckets.get(index, 0)
            for index, count in self.buckets.items()
            if count > earlier.buckets.get(index, 0)
        }
        largest = min(_middle(max(buckets)), self.largest) if buckets else 0.0
        return Distribution(buckets, max(0.0, self.total - earlier.total), largest)


def _middle(index: int) -> float:
    # The point of the bucket whose distance to both ends is the same share of them.
    return 2 * _GAMMA ** (index - _OFFSET + 1) / (_GAMMA + 1) if index else 0.0


@dataclass(slots=True)
class Snapshot:
    """Everything counted up to one moment; adds up over workers, and subtracts over time."""

    counts: dict[Key, float] = field(default_factory=dict[Key, float])
    distributions: dict[Key, Distribution] = field(default_factory=dict[Key, Distribution])

    def plus(self, other: "Snapshot") -> "Snapshot":
        """The sum of both."""
        counts = dict(self.counts)
        for key, value in other.counts.items():
            counts[key] = counts.get(key, 0) + value
        distributions = dict(self.distributions)
        for key, more in other.distributions.items():
            distributions[key] = distributions[key].plus(more) if key in distributions else more
        return Snapshot(counts, distributions)

    def minus(self, earlier: "Snapshot") -> "Snapshot":
        """What came since `earlier`."""
        nothing = Distribution()
        return Snapshot(
            {key: max(0, value - earlier.counts.get(key, 0)) for key, value in self.counts.items()},
            {key: held.minus(earlier.distributions.get(key, nothing)) for key, held in self.distributions.items()},
        )

    def count(self, family: str, **labels: str) -> float:
        """The sum over all series of `family` that have these label values."""
        wanted = _positions(family, labels)
        return sum(
            value
            for key, value in self.counts.items()
            if key[0] == family and all(key[at] == label for at, label in wanted)
        )

    def distribution(self, family: str, **labels: str) -> Distribution:
        """All series of `family` that have these label values, as one distribution."""
        wanted = _positions(family, labels)
        found = Distribution()
        for key, held in self.distributions.items():
            if key[0] == family and all(key[at] == label for at, label in wanted):
                found = found.plus(held)
        return found

    def plain(self) -> dict[str, Any]:
        """The same as lists and numbers that JSON can hold; `of_plain` reads it."""
        return {
            "counts": [[key, value] for key, value in self.counts.items()],
            "distributions": [
                [key, list(held.buckets), list(held.buckets.values()), held.total, held.largest]
                for key, held in self.distributions.items()
            ],
        }

    @classmethod
    def of_plain(cls, plain: Any) -> "Snapshot":
        """The snapshot that `plain` gave, in any process of this version. Raises `ValueError` for anything else."""
        try:
            return cls(
                {tuple(key): value for key, value in plain["counts"]},
                {
                    tuple(key): Distribution(dict(zip(places, counts, strict=True)), total, largest)
                    for key, places, counts, total, largest in plain["distributions"]
                },
            )
        except (KeyError, TypeError) as error:
            raise ValueError("this is not a snapshot") from error


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The sum of all `snapshots`."""
    total = Snapshot()
    for snapshot in snapshots:
        total = total.plus(snapshot)
    return total


@dataclass(frozen=True, slots=True)
class Family:
    """What a name stands for: its labels in order, its unit and its meaning."""

    name: str
    kind: Literal["counter", "histogram"]
    labels: tuple[str, ...]
    help: str


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("requests", "counter", ("route", "status"), "HTTP requests answered, by status class."),
        Family("response_seconds", "histogram", ("route",), "Seconds from a request's first byte to its last."),
        Family("overhead_seconds", "histogram", ("route",), "Seconds of a request without those of the model."),
        Family("first_token_seconds", "histogram", ("provider", "model"), "Seconds until the first streamed text."),
        Family("model_calls", "counter", ("provider", "model", "outcome"), "Runs of a model, by outcome."),
        Family("model_retries", "counter", ("provider", "model"), "Model requests that were sent again."),
        Family("model_seconds", "histogram", ("provider", "model"), "Seconds that a run of a model took."),
        Family("model_tokens", "counter", ("provider", "model", "direction"), "Tokens that providers counted."),
        Family("model_cost_usd", "counter", ("provider", "model"), "Dollars, where the price is known."),
        Family("limit_refusals", "counter", ("group", "limit"), "Requests refused by a rate limit or a budget."),
        Family("limits_counted_locally", "counter", (), "Limits counted by one process, while the store was away."),
        Family("cache_lookups", "counter", ("outcome",), "Prompts that asked the cache: hit, miss or coalesced."),
        Family("cache_stores", "counter", (), "Answers that were kept."),
        Family("cache_evictions", "counter", (), "Answers that made room for others."),
        Family("cache_expirations", "counter", (), "Answers whose time was over."),
        Family("cache_cleanups", "counter", (), "Clean-ups of expired answers."),
        Family("cache_cleaned", "counter", (), "Answers that clean-ups removed."),
        Family("cache_saved_requests", "counter", (), "Model requests that the cache made unnecessary."),
        Family("cache_saved_tokens", "counter", ("direction",), "Tokens that the cache saved."),
        Family("cache_saved_cost_usd", "counter", (), "Dollars that the cache saved, where the price is known."),
        Family("cache_saved_seconds", "counter", (), "Seconds of models that the cache saved."),
        Family("agent_pool_leases", "counter", ("outcome",), "Runs that found a live agent (hit) or not (miss)."),
        Family("agent_pool_evictions", "counter", (), "Agents that made room for others."),
        Family("agent_pool_idle_closings", "counter", (), "Agents that were closed since nobody used them."),
        Family("agent_creation_seconds", "histogram", (), "Seconds that the making of an agent took."),
        Family("slot_wait_seconds", "histogram", ("slot",), "Seconds that a run waited for its turn."),
        Family("slot_refusals", "counter", ("slot",), "Runs that got no turn in time."),
        Family("database_wait_seconds", "histogram", (), "Seconds that a transaction waited for its connection."),
        Family("loop_lag_seconds", "histogram", (), "Seconds that the event loop came late to a timer."),
    )
}
"""Every family that is measured. Names stay as they are: dashboards and alerts are written against them."""


def _positions(family: str, labels: Mapping[str, str]) -> list[tuple[int, str]]:
    names = FAMILIES[family].labels
    return [(names.index(name) + 1, value) for name, value in labels.items()]


Example = tuple[str, float, float]
"""A request that stands for its like: its id, its seconds, and when it was answered (seconds since 1970)."""


class Route:
    """The series of one route, held together so that many requests cost one look-up."""

    __slots__ = ("_both", "_overhead", "_response", "_statuses", "examples", "hits")

    def __init__(self, statuses: Sequence[Counter], response: Histogram, overhead: Histogram) -> None:
        self.examples: dict[int, Example] = {}
        self.hits: list[float] = []
        """The seconds of answers from memory that are still to be counted, and of which nothing else is to be told."""
        self._statuses = statuses
        self._response = response
        self._overhead = overhead
        self._both = Histogram()
        """What both have to count: where no model took part, all of the time was our own."""

    def add(self, requests: Sequence[Ended]) -> None:
        """Take these `requests` in, in the order in which they ended; `settle` counts them."""
        for status, times in Tally([ended[3] for ended in requests]).items():
            self._statuses[status // 100 if 100 <= status < 600 else 5].value += times
        self._both.record(*[ended[5] for ended in requests if ended[6] == 0])
        for seconds, model_s in [(ended[5], ended[6]) for ended in requests if ended[6] != 0]:
            self._response.record(seconds)
            if model_s is not None:
                self._overhead.record(seconds - model_s)
        last = {bisect_left(BOUNDS_S, ended[5]): ended for ended in requests if ended[0] is not None}
        for place, (request_id, at, _, _, _, seconds, _, _) in last.items():
            self.examples[place] = (str(request_id), seconds, at)

    def count_hits(self) -> None:
        """Count the `hits`."""
        if self.hits:
            hits, self.hits = self.hits, []
            self._statuses[2].value += len(hits)
            self._both.record_all(hits)

    def settle(self) -> None:
        """Bring the histograms up to date."""
        self.count_hits()
        self._response.add(self._both)
        self._overhead.add(self._both)
        self._both = Histogram()


class Metrics:
    """All that one worker counts. Made once a process and handed to every room through plain callables.

    A family keeps at most `max_series` series; what would be one more counts under `other`.
    """

    def __init__(self, *, clock: Callable[[], float] = time, max_series: int = 500) -> None:
        self.founder = uuid4().hex
        """The same in all processes that were forked after this was made."""
        self.in_flight = 0
        self._clock = clock
        self._ended: list[Ended] = []
        self._stories = Stories(clock=clock)
        self._max_series = max_series
        self._counters: dict[Key, Counter] = {}
        self._histograms: dict[Key, Histogram] = {}
        self._sizes: dict[str, int] = {}
        self._routes: dict[str, Route] = {}

    def counter(self, family: str, *labels: str) -> Counter:
        """The counter of these label values, made where it is new."""
        key = (family, *labels)
        found = self._counters.get(key)
        if found is None:
            key = self._admit(key, self._counters)
            found = self._counters.setdefault(key, Counter())
        return found

    def histogram(self, family: str, *labels: str) -> Histogram:
        """The histogram of these label values, made where it is new."""
        key = (family, *labels)
        found = self._histograms.get(key)
        if found is None:
            key = self._admit(key, self._histograms)
            found = self._histograms.setdefault(key, Histogram())
        return found

    def record_request(
        self,
        route: str,
        status: int,
        elapsed_s: float,
        model_s: float | None = 0.0,
        request_id: str | None = None,
        started: float = 0.0,
        story: Story | Hit | None = None,
    ) -> None:
        """Count one answered request.

        `route` is a template such as `GET /items/{id}`, never a path. `model_s` is `None` where nobody knows how
        much of it was the model's; the overhead is then not recorded. With a `request_id` it becomes the example of
        all that take about as long. A `story` is kept; it `started` then, on the `perf_counter` clock.
        """
        ended = self._ended
        ended.append((request_id, self._clock(), route, status, started, elapsed_s, model_s, story))
        if len(ended) >= _TOGETHER:
            self._work_out()

    def record_hit(self, route: str, seconds: float, request_id: str, started: float, hit: Hit) -> None:
        """Count one answer from memory, as `record_request` does; where its story is not kept, that costs much less."""
        series = self._routes.get(route)
        if series is None or seconds > self._stories.hit_bar_s:
            self.record_request(route, 200, seconds, 0.0, request_id, started, hit)
            return
        hits = series.hits
        hits.append(seconds)
        if len(hits) >= _TOGETHER:
            series.count_hits()

    def record_model_call(
        self,
        provider: str,
        model: str,
        *,
        outcome: Literal["ok", "error", "cancelled"],
        seconds: float,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cost_usd: float | None = None,
        retries: int = 0,
        first_token_s: float | None = None,
    ) -> None:
        """Count one run of a model, however it ended; `first_token_s` is known of streamed runs only."""
        self.counter("model_calls", provider, model, outcome).add()
        self.histogram("model_seconds", provider, model).record(seconds)
        if input_tokens:
            self.counter("model_tokens", provider, model, "input").add(input_tokens)
        if output_tokens:
            self.counter("model_tokens", provider, model, "output").add(output_tokens)
        if retries:
            self.counter("model_retries", provider, model).add(retries)
        if first_token_s is not None:
            self.histogram("first_token_seconds", provider, model).record(first_token_s)
        if cost_usd:
            self.counter("model_cost_usd", provider, model).add(cost_usd)

    def record_slot(self, slot: str, waited_s: float, refused: bool) -> None:
        """Count one run that had to wait for its turn."""
        self.histogram("slot_wait_seconds", slot).record(waited_s)
        if refused:
            self.counter("slot_refusals", slot).add()

    @property
    def stories(self) -> Stories:
        """The last stories, and the slowest."""
        self._work_out()
        return self._stories

    def examples(self) -> dict[str, dict[int, Example]]:
        """By route: for each of `BOUNDS_S` (and one beyond) the last request that took as long."""
        self._work_out()
        return {route: dict(series.examples) for route, series in self._routes.items() if series.examples}

    def snapshot(self) -> Snapshot:
        """Everything counted so far, as a copy."""
        self._work_out()
        for series in self._routes.values():
            series.settle()
        return Snapshot(
            {key: counter.value for key, counter in self._counters.items()},
            {
                key: Distribution(held.buckets.copy(), held.total, held.largest)
                for key, held in self._histograms.items()
            },
        )

    def _work_out(self) -> None:
        """Count what was noted down, and keep its stories."""
        ended, self._ended = self._ended, []
        by_route: dict[str, list[Ended]] = {}
        for one in ended:
            by_route.setdefault(one[2], []).append(one)
        for route, requests in by_route.items():
            series = self._routes.get(route)
            if series is None:
                series = self._add_route(route)
            series.add(requests)
        self._stories.add(ended)

    def _add_route(self, route: str) -> Route:
        if len(self._routes) >= self._max_series:
            route = OTHER
            if route in self._routes:
                return self._routes[route]
        statuses = [self.counter("requests", route, f"{hundred or 1}xx") for hundred in range(6)]
        series = Route(statuses, self.histogram("response_seconds", route), self.histogram("overhead_seconds", route))
        self._routes[route] = series
        return series

    def _admit(self, key: Key, series: Mapping[Key, object]) -> Key:
        family = FAMILIES[key[0]]
        if len(key) - 1 != len(family.labels):
            raise ValueError(f"{family.name} has the labels {family.labels}, got {key[1:]}")
        size = self._sizes.get(family.name, 0)
        # A route has six series of its status classes.
        if size >= self._max_series * 6:
            key = (family.name, *(OTHER for _ in family.labels))
        if key not in series:
            self._sizes[family.name] = size + 1
        return key
