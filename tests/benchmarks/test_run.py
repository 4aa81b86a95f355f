from benchmarks.run import AGENT, BARE, BEFORE, FASTAPI, MNEMOSINE, ROWS, goals, markdown, spread


def result(per_second: float, p50: float) -> dict[str, dict[str, float]]:
    figures = {"per_second": per_second, "p50": p50, "p95": p50, "p99": p50, "first_token_p50": p50, "cpu_ms": p50}
    return {name: spread([value]) for name, value in {**figures, "errors": 0.0, "unfinished": 0.0}.items()}


def results(*, cached: bool) -> dict[str, object]:
    everyone = {subject.name: result(100, 10) for subject in (BEFORE, BARE, FASTAPI, AGENT)}
    rows: list[dict[str, object]] = []
    for row in ROWS:
        subjects = {**everyone, MNEMOSINE.name: result(650, 1)}
        if row.kind != "uncached" and not cached:
            del subjects[MNEMOSINE.name]
        rows.append({"name": row.name, "subjects": subjects})
    return {
        "command": "python -m benchmarks",
        "rounds": 1,
        "seconds": 1.0,
        "facts": {
            "commit": "0",
            "date": "-",
            "cores": 2,
            "cpu": "-",
            "memory_gb": 1,
            "system": "-",
            "python": "3",
            "versions": {},
        },
        "rows": rows,
        "not_yet": {} if cached else {MNEMOSINE.name: {"cached": "no hit"}},
        "cold_start_s": {MNEMOSINE.name: spread([1.0]), BEFORE.name: spread([4.0])},
        "memory": [
            {"subject": MNEMOSINE.name, "workers": 4, "before": 1, "after": 100},
            {"subject": BEFORE.name, "workers": 4, "before": 1, "after": 400},
        ],
        "installed": {MNEMOSINE.name: {"bytes": 1, "packages": 1}, BEFORE.name: {"bytes": 2, "packages": 2}},
        "other_load": {"loadavg_before": 0.0, "loadavg_after": 0.0, "steal_percent": 0.0},
    }


def test_a_spread_is_the_median_and_the_extremes():
    assert spread([3.0, 1.0, 10.0]) == {"median": 3.0, "low": 1.0, "high": 10.0}


def test_goals_compare_the_same_row_of_both():
    reached = {name: value for name, _, _, value in goals(results(cached=True))}
    assert reached["cached hit, 32 connections, against bare ASGI"] == "6.50×"
    assert reached["response time uncached against before"] == "-90.0 %"
    assert reached["cold start against before"] == "-75.0 %"
    assert reached["memory, four workers after load, against before"] == "-75.0 %"


def test_what_cannot_be_measured_yet_says_so_and_stays_in_the_table():
    reached = {name: value for name, _, _, value in goals(results(cached=False))}
    assert reached["cached hit, 32 connections, against bare ASGI"] == "not yet"
    assert reached["uncached, 32 connections, against FastAPI + one agent"] == "6.50×"
    text = markdown(results(cached=False))
    assert "| cached hit, 32 connections, against bare ASGI | 0.5× | 0.65× | not yet |" in text
    assert "Not yet, mnemosine: cached (no hit)." in text
