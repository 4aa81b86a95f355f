"""The curves against traces with a known answer."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.cache_curve import CacheCurve


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def digest(name: object) -> bytes:
    return sha256(repr(name).encode()).digest()


def played(keys: int, rounds: int, *, max_bytes: int, step_s: float = 0.0, ttl_s: float = 3600.0) -> CacheCurve:
    """Every key in turn, over and over, each of 100 bytes: LRU keeps all of them or none."""
    clock = Clock()
    curve = CacheCurve(max_bytes=max_bytes, ttl_s=ttl_s, share=1, clock=clock)
    for _ in range(rounds):
        for key in range(keys):
            curve.record(digest(key), 100)
            clock.now += step_s
    return curve


def test_a_loop_over_more_than_fits_hits_only_where_all_of_it_fits() -> None:
    curve = played(100, 10, max_bytes=6000)
    assert curve.by_size() == {3000: 0.0, 6000: 0.0, 12_000: 0.9, 24_000: 0.9}
    (found,) = curve.recommendations()
    assert (found["code"], found["setting"], found["suggested"]) == ("cache-too-small", "CACHE_MAX_BYTES", 12_000)


def test_what_fits_already_asks_for_nothing() -> None:
    curve = played(100, 10, max_bytes=20_000)
    assert curve.by_size()[20_000] == 0.9
    assert curve.by_size()[10_000] == 0.9
    assert curve.recommendations() == []


def test_a_sample_of_many_keys_tells_the_same_within_a_few_per_cent() -> None:
    curve = played(5000, 4, max_bytes=250_000)
    ratios = curve.by_size()
    assert ratios[250_000] == pytest.approx(0.0, abs=0.03)
    assert ratios[1_000_000] > 0.6


def test_a_lifetime_shorter_than_the_return_of_a_question_is_named() -> None:
    # Each question returns after 1,000 s: never within 600 s, always within an hour.
    curve = played(10, 50, max_bytes=10**6, step_s=100, ttl_s=600)
    by_ttl = curve.by_ttl()
    assert by_ttl[600] == 0
    # Within 3,600 s a stored answer serves the three returns at 1,000, 2,000 and 3,000 s: 3 of 4.
    assert by_ttl[3600] == pytest.approx(0.75, abs=0.03)
    assert by_ttl[86_400] == pytest.approx(0.98, abs=0.01)
    (found,) = curve.recommendations()
    assert (found["code"], found["suggested"]) == ("ttl-too-short", 86_400)


def test_few_questions_prove_nothing() -> None:
    assert played(19, 10, max_bytes=100).recommendations() == []


@given(st.lists(st.integers(0, 12), min_size=1, max_size=200), st.sampled_from([400, 1000, 2600, 10_000]))
def test_each_size_has_the_hits_of_a_cache_of_that_size(asked: list[int], max_bytes: int) -> None:
    curve = CacheCurve(max_bytes=max_bytes, ttl_s=3600.0, share=1, clock=Clock())
    for key in asked:
        curve.record(digest(key), 100)
    for size, ratio in curve.by_size().items():
        kept, hits = list[int](), 0
        for key in asked:
            hits += key in kept
            kept = [key, *(other for other in kept if other != key)][: size // 100]
        assert ratio == hits / len(asked)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2000)), min_size=1, max_size=200))
def test_each_lifetime_has_the_hits_of_entries_that_live_as_long(asked: list[tuple[int, int]]) -> None:
    clock = Clock()
    curve = CacheCurve(max_bytes=10**6, ttl_s=100.0, share=1, clock=clock)
    moments = list[tuple[int, float]]()
    for key, pause_s in asked:
        clock.now += pause_s
        moments.append((key, clock.now))
        curve.record(digest(key), 100)
    for life_s, ratio in curve.by_ttl().items():
        stored, hits = dict[int, float](), 0
        for key, now in moments:
            if key in stored and now - stored[key] < life_s:
                hits += 1
            else:
                stored[key] = now
        assert ratio == hits / len(asked)
