"""The last and the slowest stories of a worker."""

from app.core.story import Ended, Stories, Story


def ended(request_id: str, at: float, status: int, seconds: float) -> Ended:
    return (request_id, at, "POST /x", status, 0.0, seconds, 0.0, Story())


def test_requests_that_took_as_long_at_the_same_moment_are_all_kept() -> None:
    stories = Stories(clock=lambda: 1000.0)
    stories.add(ended(f"request {number}", 1000.0, 200, 0.25) for number in range(30))
    stories.add(ended(f"slow {number}", 1000.0, 200, 0.5) for number in range(5))
    slowest = stories.slowest()
    assert len(slowest) == 20
    assert {told.request_id for told in slowest[:5]} == {f"slow {number}" for number in range(5)}


def test_plain_requests_push_out_no_remarkable_one() -> None:
    stories = Stories(size=4, plain_size=2, clock=lambda: 1000.0)
    stories.add([ended("failed", 1000.0, 500, 0.01)])
    stories.add(ended(f"hit {number}", 1001.0 + number, 200, 0.01) for number in range(10))
    assert stories.find("failed") is not None
    assert stories.find("hit 9") is not None
    assert stories.find("hit 7") is None
    assert [told.request_id for told in stories.take_unshown()] == ["failed", "hit 8", "hit 9"]
    assert stories.take_unshown() == []


def test_of_answers_from_memory_only_as_many_are_told_of_as_can_be_shown() -> None:
    stories = Stories(plain_size=30, clock=lambda: 1000.0)
    assert stories.hit_bar_s < 0, "there is room for all"
    stories.add([ended(f"hit {number}", 1000.0, 200, 0.0001) for number in range(29)])
    assert stories.hit_bar_s < 0
    stories.add([ended("hit 29", 1000.0, 200, 0.0002)])
    assert stories.hit_bar_s == 0.0001, "what would be one of the slowest still has its place"
    stories.add([ended(f"slow {number}", 1000.0, 200, 0.5) for number in range(20)])
    assert stories.hit_bar_s == 0.001, "and what takes longer than most"
    stories.take_unshown()
    assert stories.hit_bar_s < 0, "they were shown: there is room again"
