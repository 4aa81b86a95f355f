"""The history of the charts: what was done is in its points, and it outlives a restart."""

from pathlib import Path
from typing import Any

from tests.application import Application, open_application

HISTORY = "/api/v1/performance/history"


async def columns(application: Application, reach: str = "5m") -> dict[str, list[Any]]:
    await application.runtime.totals.report()
    application.runtime.totals._heard = None  # pyright: ignore[reportPrivateUsage] - what was read a moment ago
    return (await application.client.get(HISTORY, params={"range": reach})).json()["columns"]


def note_now(application: Application) -> None:
    """As if five seconds had gone by since the last moment was noted."""
    application.runtime.totals.scoreboard._set_fact("turn-note", 0.0)  # pyright: ignore[reportPrivateUsage]


async def test_prompts_are_in_the_points(application: Application) -> None:
    await columns(application, "1h")
    for number in range(5):
        await application.prompt(f"hello {number % 3}")
    note_now(application)
    found = await columns(application)
    assert {len(column) for column in found.values()} == {len(found["at"])}
    counted = sum(r * s for r, s in zip(found["requests_per_second"], found["seconds"], strict=True))
    assert round(counted) >= 5
    assert [ratio for ratio in found["cache_hit_ratio"] if ratio is not None] == [0.4]
    assert max(value or 0 for value in found["response_p99_ms"]) > 0
    assert max(found["memory_bytes"]) > 10_000_000


async def test_it_outlives_a_restart(tmp_path: Path) -> None:
    found: dict[str, list[Any]] = {}
    for _ in range(2):
        async with open_application(tmp_path / "data") as application:
            await application.prompt("hello")
            note_now(application)
            found = await columns(application)
    assert len(found["at"]) >= 2
    assert all(value >= 0 for value in found["requests_per_second"])


async def test_it_is_for_callers_and_knows_three_ranges(application: Application) -> None:
    assert (await application.anonymous.get(HISTORY)).status_code == 401
    for reach, status in (("5m", 200), ("1h", 200), ("24h", 200), ("1y", 422)):
        assert (await application.client.get(HISTORY, params={"range": reach})).status_code == status
