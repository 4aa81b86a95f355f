"""What the runner makes of figures; what it measures is only as good as that."""

from typing import Any

import pytest

from benchmarks.goals import GOALS, PEER_GOALS, REASONS
from benchmarks.report import goal_lines, markdown, short, shown
from benchmarks.rows import HIT_MANY, MANY, ROWS, spread
from benchmarks.run import MARKS, README, between_marks
from benchmarks.subjects import AGENT, BARE, BEFORE, FASTAPI, MNEMOSINE, installed

Figures = dict[str, Any]


def runs(per_second: float, ms: float, **others: float) -> dict[str, list[float]]:
    """Two rounds of a subject, the second ten percent better."""
    found = {"per_second": [per_second, per_second * 1.1]}
    found |= {name: [ms, ms / 1.1] for name in ("p50", "p95", "p99", "first_token_p50", "cpu_ms")}
    return found | {name: [others.get(name, 0.0), 0.0] for name in ("errors", "unfinished", "others_percent")}


def figures(**ours: float) -> Figures:
    rows: list[Figures] = []
    for row in ROWS:
        subjects = {subject.name: runs(100, 10) for subject in (BEFORE, BARE, FASTAPI, AGENT)}
        rows.append({"name": row.name, "failed": {}, "subjects": subjects | {MNEMOSINE.name: runs(650, 1, **ours)}})
    machine = {"commit": "0", "changed": False, "date": "-", "cores": 2, "cpu": "-", "memory_gb": 1, "system": "-"}
    return {
        "command": "python -m benchmarks",
        "rounds": 2,
        "seconds": 1.0,
        "took_s": 60.0,
        "steal_percent": 0.0,
        "facts": machine | {"python": "3", "apart": True, "loadavg": 0.0},
        "versions": {MNEMOSINE.name: {"fastapi": "0"}},
        "absent": {},
        "not_able": {},
        "rows": rows,
        "cold_start_s": {MNEMOSINE.name: [1.0, 1.0], BEFORE.name: [4.0, 4.0]},
        "memory": [
            {"subject": MNEMOSINE.name, "workers": 4, "before": [1.0], "after": [100.0]},
            {"subject": BEFORE.name, "workers": 4, "before": [1.0], "after": [400.0]},
        ],
        "installed": {MNEMOSINE.name: {"bytes": 45, "packages": 1}, BEFORE.name: {"bytes": 100, "packages": 2}},
        "growth": {
            "entries": 1_000_000,
            "hit_us": {name: [30.0, 30.0] for name in ("hit few", "hit many", "look-up few", "look-up many")},
            "prompt_ms": {"10": [1.0], "100": [2.0], "1000": [11.0]},
        },
    }


def line_of(page: str, beginning: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(f"| {beginning}"))


def test_a_spread_is_the_median_and_the_extremes() -> None:
    assert spread([3.0, 1.0, 10.0]) == {"median": 3.0, "low": 1.0, "high": 10.0}
    assert shown(spread([3.0, 1.0, 10.0])) == "3.00 (1.00–10.0)"
    assert shown(spread([1234.0])) == "1,234"


def test_a_figure_compares_the_rounds_of_both() -> None:
    page = markdown(figures(), None)
    assert "| 0.50× | 0.65× | 6.50× | yes, and the aim | 10.00× |" in line_of(page, "cached hit, 32")
    assert "| 6.00× | 12.00× | 6.50× | yes |" in line_of(page, "uncached at 0 ms, 32 connections")
    assert "| -90 % | -95 % | -90 % | yes |" in line_of(page, "response time uncached")
    assert "| -65 % | -80 % | -75 % | yes |" in line_of(page, "cold start")
    assert "| flat | flat | 1.00× | yes |" in line_of(page, "cost of a hit")
    assert "- Aim missed: uncached at 0 ms, 32 connections" in page


def test_a_missed_figure_stays_with_its_number_and_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = figures()
    for row in slow["rows"]:
        row["subjects"][MNEMOSINE.name] = runs(10, 100)
    monkeypatch.setitem(REASONS, GOALS[0].name, "Because of this.")
    page = markdown(slow, None)
    assert "| 0.50× | 0.65× | 0.10× | **no** | 0.10× |" in line_of(page, "cached hit, 32")
    assert f"- Missed: {GOALS[0].name}. Because of this." in page


def test_a_row_in_which_we_refused_anything_is_not_met() -> None:
    page = markdown(figures(errors=3), None)
    assert "| **no**, 3 errors |" in line_of(page, "cached hit, 32")


def test_what_was_not_measured_says_so() -> None:
    without = figures()
    without["rows"] = [row for row in without["rows"] if row["name"] != HIT_MANY.name]
    without |= {"growth": None, "memory": [], "cold_start_s": {}, "absent": {BEFORE.name: "it\nended"}}
    verdicts = dict(goal_lines(GOALS, without))
    assert verdicts[GOALS[0].name] == "not measured"
    page = markdown(without, None)
    assert "| – | not measured | |" in line_of(page, "cost of a hit")
    assert "| – | not measured | |" in line_of(page, "installed size against LiteLLM")
    assert "Not measured, before: it ended" in page
    assert all(verdict == "not measured" for _, verdict in goal_lines(PEER_GOALS, {}))


def test_other_programs_make_the_figures_provisional() -> None:
    assert "provisional" not in markdown(figures(), None)
    busy = figures()
    for row in busy["rows"]:
        for subject in row["subjects"].values():
            subject["others_percent"] = [40.0, 50.0]
    assert "Other programs kept 45.0 (40.0–50.0) % of the machine busy" in markdown(busy, None)
    assert "provisional" in markdown(busy, None)


def test_the_readme_shows_the_short_table_between_its_marks() -> None:
    table = short(figures(), None)
    assert "| cold start to the first answer, against before | -65 % | -80 % | -75 % |" in table
    assert "| installed size against LiteLLM | -80 % | -85 % | not measured |" in table
    page = f"a\n{MARKS[0]}old\n{MARKS[1]}b\n"
    assert between_marks(page, "new") == f"a\n{MARKS[0]}\nnew\n\n{MARKS[1]}b\n"
    assert between_marks(between_marks(page, "new"), "new") == between_marks(page, "new")
    assert between_marks("no marks\n", "new") == "no marks\n"
    assert all(mark in README.read_text() for mark in MARKS)


def test_each_row_asks_what_its_subjects_understand() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert {row.kind for row in ROWS} <= set(MNEMOSINE.ways)
    assert MANY.kind in BEFORE.ways
    assert all("{nonce}" in way.body for subject in (BEFORE, BARE, AGENT, MNEMOSINE) for way in subject.ways.values())


def test_what_is_installed_is_counted_without_bytecode_and_installer(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / ".venvs" / "before" / "lib" / "python3" / "site-packages"
    for name in ("pip/a.py", "one/a.py", "one/__pycache__/a.pyc", "one-1.0.dist-info/METADATA"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(b"1234567890")
    monkeypatch.setattr("benchmarks.subjects.HERE", tmp_path)
    assert installed(BEFORE) == {"bytes": 20, "packages": 1}
