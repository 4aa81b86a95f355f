"""RESULTS.md: the tables that people read, from the figures of the last run of each kind."""

from benchmarks.goals import GOALS, PEER_GOALS, REASONS, Goal, Results
from benchmarks.rows import spread

_BUSY_PERCENT = 10.0
_ABOUT = "Written by `make bench` and `make bench-peers`; what is compared stands in [README.md](README.md)."
_HOW_TO_READ = (
    "Ratios are ours over theirs, medians of the rounds with their extremes; “by CPU” is the same ratio by the CPU "
    "time of the servers, which other programs disturb less. Any answer but a right one of status 200 is an error, and "
    "a row in which we had one is not met."
)
_ROW_HEAD = "| | requests/s | P50 ms | P95 ms | P99 ms | first token ms | CPU ms | errors | unfinished | others % |"


def markdown(ours: Results | None, peers: Results | None) -> str:
    """The whole page; either part may not have been measured yet."""
    lines = ["# Results", "", _ABOUT, "", "| goal | must | aim | reached | met | by CPU |", "|---|---|---|---|---|---|"]
    reasons: list[str] = []
    for goals, results in ((GOALS, ours), (PEER_GOALS, peers)):
        lines.extend(_goal_line(goal, results or {}, reasons) for goal in goals)
    lines += ["", *reasons, *([""] if reasons else []), _HOW_TO_READ, ""]
    for title, results in (("Before, the limits and Mnemosine", ours), ("Peers", peers)):
        if results:
            lines += [f"## {title}", "", *_provenance(results), *_rows(results), *_footprint(results)]
    return "\n".join(lines).rstrip() + "\n"


def short(ours: Results | None, peers: Results | None) -> str:
    """The table of goals alone, for the README."""
    lines = ["| goal | must | aim | reached |", "|---|---|---|---|"]
    for goals, results in ((GOALS, ours), (PEER_GOALS, peers)):
        for goal in goals:
            figure = goal.reached(results or {})
            must, aim = goal.words or (goal.shown(goal.must), goal.shown(goal.aim))
            reached = "not measured" if figure is None else goal.shown(figure.median)
            missed = ", **missed**" if goal.verdict(figure) == "no" else ""
            lines.append(f"| {goal.name} | {must} | {aim} | {reached}{missed} |")
    about = [_moment(results) for results in (ours, peers) if results]
    return "\n".join([*lines, "", *about])


def _moment(results: Results) -> str:
    machine, others = results["facts"], _others(results)
    line = f"`{results['command']}`, commit {machine['commit']}, {machine['date']}, {machine['cores']} cores"
    if others is not None and others["median"] >= _BUSY_PERCENT:
        line += f", other programs busy on {others['median']:.0f} % of them: provisional"
    return f"{line}."


def goal_lines(goals: tuple[Goal, ...], results: Results) -> list[tuple[str, str]]:
    """Name and verdict of each goal."""
    return [(goal.name, goal.verdict(goal.reached(results))) for goal in goals]


def _goal_line(goal: Goal, results: Results, reasons: list[str]) -> str:
    figure = goal.reached(results)
    verdict = goal.verdict(figure)
    must, aim = goal.words or (goal.shown(goal.must), goal.shown(goal.aim))
    if figure is None:
        return f"| {goal.name} | {must} | {aim} | – | not measured | |"
    reached = goal.shown(figure.median)
    if goal.shown(figure.low) != goal.shown(figure.high):
        reached += f" ({goal.shown(figure.low)} to {goal.shown(figure.high)})"
    met = {"aim": "yes, and the aim", "yes": "yes", "no": "**no**"}[verdict]
    if goal.words and goal.must == goal.aim and verdict == "aim":
        met = "yes"
    if figure.errors:
        met += f", {figure.errors} errors"
    if verdict in ("no", "yes"):
        short = "Missed" if verdict == "no" else "Aim missed"
        reasons.append(f"- {short}: {goal.name}. {REASONS.get(goal.name, 'The reason is not known yet.')}")
    by_cpu = "" if figure.by_cpu is None else goal.shown(figure.by_cpu)
    return f"| {goal.name} | {must} | {aim} | {reached} | {met} | {by_cpu} |"


def _provenance(results: Results) -> list[str]:
    machine, others = results["facts"], _others(results)
    apart = "different cores" if machine["apart"] else "the same core"
    busy = others and others["median"] >= _BUSY_PERCENT
    run = (
        f"`{results['command']}` at commit {machine['commit']}{' with changes' if machine['changed'] else ''}, "
        f"{machine['date']}, {results['took_s'] / 60:.0f} minutes. {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}."
    )
    method = (
        f"Medians of {results['rounds']} alternating rounds of {results['seconds']:g} s, extremes in brackets; who is "
        f"too slow for that gets a longer window, or one request a connection, once. Server and load on {apart}. The "
        f"model is the fake provider of this folder. Load average before {machine['loadavg']:.2f}, steal "
        f"{results['steal_percent']} %."
    )
    lines = [run, "", method, ""]
    if others:
        provisional = " These figures are provisional." if busy else ""
        lines += [
            f"Other programs kept {shown(others)} % of the machine busy during the measurements.{provisional}",
            "",
        ]
    for name, versions in results["versions"].items():
        lines.append(f"- {name}: {', '.join(f'{package} {version}' for package, version in versions.items())}")
    return [*lines, ""]


def _others(results: Results) -> dict[str, float] | None:
    values = [
        one for row in results["rows"] for subject in row["subjects"].values() for one in subject["others_percent"]
    ]
    return spread(values) if values else None


def _rows(results: Results) -> list[str]:
    lines: list[str] = []
    for row in results["rows"]:
        lines += [f"### {row['name']}", "", _ROW_HEAD, f"|{'---|' * 10}"]
        for name, runs in row["subjects"].items():
            cells = [shown(spread(runs[key])) for key in ("per_second", "p50", "p95", "p99")]
            cells.append(shown(spread(runs["first_token_p50"])) if any(runs["first_token_p50"]) else "–")
            cells.append(shown(spread(runs["cpu_ms"])))
            cells += [f"{sum(runs[key]):.0f}" for key in ("errors", "unfinished")]
            cells.append(f"{spread(runs['others_percent'])['median']:.0f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += [f"| {name} | failed: {_one_line(why)} | | | | | | | | |" for name, why in row["failed"].items()]
        lines.append("")
    return lines


def _footprint(results: Results) -> list[str]:
    lines = ["### Start, memory, size", ""]
    if results["cold_start_s"]:
        lines += ["| | cold start s |", "|---|---|"]
        lines += [f"| {name} | {shown(spread(values))} |" for name, values in results["cold_start_s"].items()]
        lines.append("")
    if results["memory"]:
        lines += ["| | workers | PSS before load MB | after load MB |", "|---|---|---|---|"]
        for one in results["memory"]:
            cells = [shown(spread([value / 1e6 for value in one[key]])) for key in ("before", "after")]
            lines.append(f"| {one['subject']} | {one['workers']} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["| | installed MB | packages |", "|---|---|---|"]
    lines += [
        f"| {name} | {one['bytes'] / 1e6:.1f} | {one['packages']} |" for name, one in results["installed"].items()
    ]
    lines.append("")
    if growth := results.get("growth"):
        lines += ["| CPU of | |", "|---|---|"]
        for name, key in (("a hit", "hit"), ("a bare look-up of a random entry", "look-up")):
            for size, number in (("few", 1000), ("many", growth["entries"])):
                values = spread(growth["hit_us"][f"{key} {size}"])
                lines.append(f"| {name} among {number:,} entries | {shown(values)} µs |")
        for length, values in growth["prompt_ms"].items():
            lines.append(f"| a prompt after {int(length):,} messages | {shown(spread(values))} ms |")
        lines.append("")
    for name, why in results["absent"].items():
        lines.append(f"Not measured, {name}: {_one_line(why)}")
    for name, kinds in results["not_able"].items():
        lines += [f"Not measured, {name}, {kind}: {_one_line(said)}" for kind, said in kinds.items()]
    return [*lines, ""]


def _one_line(text: str) -> str:
    return " ".join(text.split())[-200:].replace("|", "/")


def shown(value: dict[str, float]) -> str:
    """A median with its extremes."""

    def figure(number: float) -> str:
        return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"

    if value["low"] == value["high"]:
        return figure(value["median"])
    return f"{figure(value['median'])} ({figure(value['low'])}–{figure(value['high'])})"
