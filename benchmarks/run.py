"""Before, the limits of this machine, and Mnemosine, side by side in one run; writes RESULTS.md and its figures.

The servers run on one core, the load and the fake provider on another. Of every row each subject is measured in turn,
in alternating order, so that a drift of the machine meets all of them alike. Each subject has an environment of its
own under `.venvs/`, made when it is missing; who cannot be measured is left out, and the results say why.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

from benchmarks.footprint import cold_starts, memory
from benchmarks.goals import GOALS, PEER_GOALS
from benchmarks.machine import Steal, facts
from benchmarks.peers import PEERS
from benchmarks.report import goal_lines, markdown, short
from benchmarks.rows import ROWS, measure_row, say
from benchmarks.running import SERVER_CORES, Running, fake_provider, homes, pinned, serve
from benchmarks.subjects import (
    BEFORE,
    HERE,
    MNEMOSINE,
    ROOT,
    SUBJECTS,
    Subject,
    installed,
    make_environment,
    versions_of,
)

PAGE = HERE / "RESULTS.md"
README = ROOT / "README.md"
MARKS = ("<!-- written by make bench -->\n", "<!-- until here -->\n")
FIGURES = {"ours": HERE / "results.json", "peers": HERE / "results-peers.json"}


def main() -> None:
    """Measure, write, and print the table of goals."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="longer windows, more rounds, more rows: half an hour")
    parser.add_argument("--peers", action="store_true", help="measure the peers instead of before and the limits")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="counted time of one measurement")
    parser.add_argument("--row", action="append", default=[], help="only rows whose name holds this; writes nothing")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the tables anew from the figures")
    options = parser.parse_args()
    if not options.page:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped
        kind = "peers" if options.peers else "ours"
        results = measure(
            (*PEERS, MNEMOSINE) if options.peers else SUBJECTS,
            rounds=options.rounds or (5 if options.full else 2),
            seconds=options.seconds or (5.0 if options.full else 1.0),
            full=options.full,
            wanted=tuple(options.row),
        )
        results["command"] = " ".join(["python -m benchmarks", *sys.argv[1:]])
        if options.row:
            print(markdown(*((results, None) if kind == "ours" else (None, results))))
            return
        FIGURES[kind].write_text(json.dumps(results, indent=1) + "\n")
    ours, peers = (json.loads(path.read_text()) if path.exists() else None for path in FIGURES.values())
    PAGE.write_text(markdown(ours, peers))
    README.write_text(between_marks(README.read_text(), short(ours, peers)))
    for name, verdict in [*goal_lines(GOALS, ours or {}), *goal_lines(PEER_GOALS, peers or {})]:
        print(f"{verdict:12} {name}")


def between_marks(page: str, table: str) -> str:
    """`page` with `table` between its marks; as it is where it has none."""
    before, mark, rest = page.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    return f"{before}{mark}\n{table}\n\n{end}{after}" if mark and end else page


def measure(
    subjects: tuple[Subject, ...], *, rounds: int, seconds: float, full: bool, wanted: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Everything that the tables show, of all `subjects` that can be started."""
    began, steal = time.monotonic(), Steal()
    results: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "facts": facts(), "absent": {}, "not_able": {}}
    results |= {"rows": [], "cold_start_s": {}, "memory": [], "installed": {}}
    subjects = _with_environments(subjects, results["absent"])
    results["versions"] = {one.name: versions_of(one) for one in subjects if one.versions}
    rows = [row for row in ROWS if (full or not row.only_full or wanted) and _is_wanted(row.name, wanted)]
    with ExitStack() as stack:
        provider = stack.enter_context(fake_provider())
        folders = stack.enter_context(homes(subjects))
        if not wanted:
            weighed = subjects if full else tuple(one for one in subjects if one.name not in _LIGHT)
            starts, failed = cold_starts(weighed, provider, folders, starts=5 if full else 2)
            results["cold_start_s"] = starts
            results["absent"] |= failed
            subjects = tuple(one for one in subjects if one.name not in results["absent"])
        with ExitStack() as servers:
            up: list[Running] = []
            for subject in subjects:
                try:
                    up.append(servers.enter_context(serve(subject, provider, folders[subject.name], for_load=True)))
                except RuntimeError as error:
                    results["absent"][subject.name] = str(error)
            results["not_able"] = {server.subject.name: server.not_able for server in up if server.not_able}
            rates: dict[str, float] = {}
            for row in rows:
                results["rows"].append(measure_row(row, up, provider, rounds=rounds, seconds=seconds, rates=rates))
        if not wanted:
            heavy = tuple(one for one in subjects if one.name in (BEFORE.name, MNEMOSINE.name))
            results["memory"] = memory(heavy, provider, folders, starts=3 if full else 1)
    if not wanted:
        results["installed"] = {one.name: installed(one) for one in subjects if one.name not in _LIGHT}
        if BEFORE in subjects:
            results["growth"] = _growth(rounds=5 if full else 2, absent=results["absent"])
    return results | {"steal_percent": steal.percent(), "took_s": time.monotonic() - began}


_LIGHT = tuple(one.name for one in SUBJECTS if one not in (BEFORE, MNEMOSINE))
"""The limits: nobody asks how quickly they start or what they weigh."""


def _is_wanted(name: str, wanted: tuple[str, ...]) -> bool:
    return not wanted or any(part in name for part in wanted)


def _with_environments(subjects: tuple[Subject, ...], absent: dict[str, str]) -> tuple[Subject, ...]:
    able: list[Subject] = []
    for subject in subjects:
        try:
            make_environment(subject)
        except (subprocess.CalledProcessError, OSError) as error:
            if subject.name == MNEMOSINE.name:
                raise
            absent[subject.name] = f"its environment could not be made: {type(error).__name__}"
        else:
            able.append(subject)
    return tuple(able)


def _growth(*, rounds: int, absent: dict[str, str]) -> dict[str, Any] | None:
    say("growth")
    command = [sys.executable, "-m", "benchmarks.growth", "--rounds", str(rounds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=pinned(SERVER_CORES))
    if done.returncode:
        absent["growth"] = done.stderr[-300:]
        return None
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
