"""Counts are exact, percentiles are within one per cent, sums are sums, windows are windows."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from app.core.metrics import BOUNDS_S, OTHER, Histogram, Metrics, Snapshot, merge
from app.core.run import Answer, Usage
from app.core.story import Hit, Story


def _true_percentile(values: list[float], q: float) -> float:
    return sorted(values)[int(q * (len(values) - 1))]


def _held(values: list[float]) -> Snapshot:
    metrics = Metrics()
    for value in values:
        metrics.histogram("database_wait_seconds").record(value)
    return metrics.snapshot()


@settings(deadline=None)
@given(st.lists(st.floats(1e-5, 1e6), min_size=1, max_size=300), st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]))
def test_any_percentile_of_any_values_is_within_one_per_cent(values: list[float], q: float) -> None:
    measured = _held(values).distribution("database_wait_seconds")
    assert measured.count == len(values)
    assert measured.percentile(q) == pytest.approx(_true_percentile(values, q), rel=0.01)
    assert measured.total == pytest.approx(sum(values))
    assert measured.largest == max(values)


DRAWS: dict[str, Callable[[random.Random], float]] = {
    "lognormal": lambda source: source.lognormvariate(-3, 1.2),
    "exponential": lambda source: source.expovariate(4),
    "uniform": lambda source: source.uniform(0.001, 2),
    "two peaks": lambda source: source.choice([0.002, 30.0]),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_known_distributions_come_out_within_one_per_cent(draw: Callable[[random.Random], float]) -> None:
    source = random.Random(7)
    values = [draw(source) for _ in range(20_000)]
    measured = _held(values).distribution("database_wait_seconds")
    for q in (0.5, 0.95, 0.99, 0.999):
        assert measured.percentile(q) == pytest.approx(_true_percentile(values, q), rel=0.01)


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(1e-5, 1e6), max_size=50), min_size=1, max_size=6))
def test_the_sum_of_workers_is_as_if_one_had_counted_all(parts: list[list[float]]) -> None:
    together = _held([value for part in parts for value in part])
    summed = merge(Snapshot.of_plain(from_json(to_json(_held(part).plain()))) for part in parts)
    left = summed.distribution("database_wait_seconds")
    right = together.distribution("database_wait_seconds")
    assert left.buckets == right.buckets
    assert left.total == pytest.approx(right.total)
    assert left.largest == right.largest


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-9, float("nan"), float("inf"), 1e300])
def test_odd_values_are_counted_and_break_nothing(value: float) -> None:
    histogram = Histogram()
    histogram.record(value)
    assert sum(histogram.buckets.values()) == 1
    assert 0 <= histogram.total <= 1e9


def test_requests_are_counted_by_route_and_status_class() -> None:
    metrics = Metrics()
    for status in (200, 201, 404, 500, 503):
        metrics.record_request("POST /x", status, 0.1, 0.08)
    metrics.record_request("GET /y", 200, 0.2)
    snapshot = metrics.snapshot()
    assert snapshot.count("requests") == 6
    assert snapshot.count("requests", route="POST /x", status="5xx") == 2
    assert snapshot.count("requests", status="2xx") == 3
    assert snapshot.distribution("response_seconds", route="POST /x").count == 5
    assert snapshot.distribution("overhead_seconds", route="POST /x").percentile(0.5) == pytest.approx(0.02, rel=0.01)


def test_labels_are_bounded_and_nothing_is_lost() -> None:
    metrics = Metrics(max_series=10)
    for number in range(1000):
        metrics.record_request(f"GET /{number}", 200, 0.1)
        metrics.counter("model_retries", "p", f"m{number}").add()
    snapshot = metrics.snapshot()
    assert snapshot.count("requests") == 1000
    assert snapshot.count("requests", route=OTHER) == 990
    assert snapshot.distribution("response_seconds").count == 1000
    assert snapshot.distribution("overhead_seconds", route=OTHER).count == 990
    assert snapshot.count("model_retries") == 1000
    assert len(snapshot.counts) < 200


def test_a_series_with_the_wrong_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        Metrics().counter("requests", "GET /x")


def test_something_else_is_no_snapshot() -> None:
    with pytest.raises(ValueError):
        Snapshot.of_plain({"a": 1})


def test_each_bucket_has_the_last_request_as_its_example() -> None:
    metrics = Metrics(clock=lambda: 1000.0)
    for number in range(3):
        metrics.record_request("GET /x", 200, 0.07, request_id=f"fast-{number}")
    metrics.record_request("GET /x", 200, 700, request_id="slow")
    assert metrics.examples() == {"GET /x": {6: ("fast-2", 0.07, 1000.0), len(BOUNDS_S): ("slow", 700, 1000.0)}}


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from(["GET /x", "GET /y"]),
                st.sampled_from([200, 404, 503]),
                st.floats(0.001, 100),
                st.sampled_from([0.0, 0.0005, None]),
            ),
            st.just("read"),
        ),
        max_size=300,
    )
)
def test_a_reader_finds_every_request_whenever_it_reads(
    events: list[tuple[str, int, float, float | None] | str],
) -> None:
    metrics = Metrics()
    told: list[tuple[str, int, float, float | None]] = []
    for event in [*events, "read"]:
        if not isinstance(event, str):
            metrics.record_request(*event, request_id=f"number {len(told)}", story=Story())
            told.append(event)
            continue
        snapshot = metrics.snapshot()
        for route in ("GET /x", "GET /y"):
            those = [one for one in told if one[0] == route]
            assert snapshot.count("requests", route=route, status="5xx") == sum(one[1] == 503 for one in those)
            response = snapshot.distribution("response_seconds", route=route)
            assert response.count == len(those)
            assert response.total == pytest.approx(sum(one[2] for one in those))
            assert response.largest == max((one[2] for one in those), default=0)
            overhead = snapshot.distribution("overhead_seconds", route=route)
            assert overhead.total == pytest.approx(sum(one[2] - one[3] for one in those if one[3] is not None))
        if told:
            last = f"number {len(told) - 1}"
            assert metrics.stories.find(last) is not None
            assert last in {name for places in metrics.examples().values() for name, _, _ in places.values()}


def test_answers_from_memory_are_all_counted_and_the_slow_ones_told_of() -> None:
    answer = Answer(
        id="r", output="", agent="default", model="m", usage=Usage(), cost_usd=None, model_s=0.1, cache="HIT"
    )
    hit: Hit = ("alice", answer, 1.0, 3600.0)
    metrics = Metrics()
    seconds = [0.0001 * (1 + number % 7) for number in range(999)]
    for number, took in enumerate(seconds):
        metrics.record_hit("POST /ask", took, f"quick {number}", 1.0, hit)
    metrics.record_hit("POST /ask", 0.02, "slow", 1.0, hit)
    metrics.record_hit("POST /ask", 0.0, "no time", 1.0, hit)
    counted = metrics.snapshot()
    assert counted.count("requests", route="POST /ask", status="2xx") == 1001
    for family in ("response_seconds", "overhead_seconds"):
        measured = counted.distribution(family)
        assert measured.count == 1001
        assert measured.total == pytest.approx(sum(seconds) + 0.02)
        assert measured.largest == 0.02
        assert measured.percentile(0.5) == pytest.approx(_true_percentile(seconds, 0.5), rel=0.01)
    stories = metrics.stories
    assert stories.find("slow") is not None
    told = [number for number in range(999) if stories.find(f"quick {number}") is not None]
    assert 0 < len(told) <= 48
    assert max(told) < 500, "what came when there was no room any more was only counted"
    assert [place for place, (name, _, _) in metrics.examples()["POST /ask"].items() if name == "slow"] == [4]
