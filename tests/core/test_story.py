"""The last and the slowest stories of a worker."""

from app.core.story import Stories, Story


def test_requests_that_took_as_long_at_the_same_moment_are_all_kept() -> None:
    stories = Stories(clock=lambda: 1000.0)
    for number in range(30):
        stories.add(f"request {number}", 1000.0, "POST /x", 200, 0.0, 0.25, Story())
    for number in range(5):
        stories.add(f"slow {number}", 1000.0, "POST /x", 200, 0.0, 0.5, Story())
    slowest = stories.slowest()
    assert len(slowest) == 20
    assert {told.request_id for told in slowest[:5]} == {f"slow {number}" for number in range(5)}
