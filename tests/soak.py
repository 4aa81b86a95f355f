"""`make soak`: all slow tests, two at a time where they do not disturb each other, and a table of what they reached."""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.figures import COLUMNS, PROPERTY, table

ROOT = Path(__file__).parent.parent
LANES = 2
"""One for each core that is asked for. Most tests have a server and its clients, which together use one."""

LONG_RUN = "tests/faults/test_long_run.py"
COMPANY = ("tests/workers/test_idempotency.py", "tests/test_numbers_of_all_workers.py")
"""What keeps the long run company meanwhile, some five minutes of starting and waiting."""
COMPANY_FROM_S, COMPANY_TO_S = 190.0, 400.0
"""When company may come: the long run compares its second minute with its last, and is alone in both."""

APART = ("tests/test_shutdown.py", "tests/test_dead_workers.py", "tests/workers/test_conversations.py")
"""Files whose tests are long enough to run each by itself; of the others a file is one run."""
LONGEST_FIRST = (
    "tests/faults/test_crashes.py",
    "tests/test_accounts_model.py",
    "tests/fuzz/",
    "tests/test_shutdown.py",
)


@dataclass(slots=True)
class Run:
    """One run of pytest: what it was told to run, and what came of it."""

    name: str
    took_s: float = 0.0
    outcome: str = ""
    counts: dict[str, int] = field(default_factory=dict[str, int])
    figures: list[list[str]] = field(default_factory=list[list[str]])


class Soak:
    """Runs the slow tests; `runs` are those that have ended."""

    def __init__(self, folder: Path) -> None:
        self.runs: list[Run] = []
        self._folder = folder
        self._began = time.monotonic()

    async def all(self, names: Iterable[str]) -> None:
        """Each of `names` once."""
        left = [*names]
        if LONG_RUN in left:
            left.remove(LONG_RUN)
            company = [name for name in COMPANY if name in left]
            _, kept = await asyncio.gather(self._run(LONG_RUN), self._keep_company(company))
            left = [name for name in left if name not in kept]
        queue = deque(sorted(left, key=_place))
        await asyncio.gather(*(self._work_on(queue) for _ in range(LANES)))

    async def _keep_company(self, names: list[str]) -> list[str]:
        """Run those of `names` that may still begin; gives them."""
        began, ran = time.monotonic(), list[str]()
        await asyncio.sleep(COMPANY_FROM_S)
        for name in names:
            if time.monotonic() - began < COMPANY_TO_S:
                await self._run(name)
                ran.append(name)
        return ran

    async def _work_on(self, queue: deque[str]) -> None:
        while queue:
            await self._run(queue.popleft())

    async def _run(self, name: str) -> None:
        report = self._folder / f"{len(list(self._folder.iterdir()))}.xml"
        report.touch()
        command = [sys.executable, "-m", "pytest", "-m", "soak", "--timeout", "3600", "-q", "-o", "junit_family=xunit1"]
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *command, f"--junitxml={report}", name, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        run = Run(name, time.monotonic() - began, "passed" if process.returncode == 0 else "FAILED")
        _read(report, run)
        self.runs.append(run)
        at = time.monotonic() - self._began
        counted = ", ".join(f"{number} {outcome}" for outcome, number in run.counts.items())
        print(f"{at / 60:5.1f} min  {run.outcome}  {run.took_s:4.0f} s  {name}: {counted}", flush=True)
        if run.outcome != "passed":
            print(output.decode(errors="replace")[-20_000:], flush=True)


def _place(name: str) -> int:
    """Where a run stands in the queue: long ones first, so that none is left over at the end."""
    return next((at for at, first in enumerate(LONGEST_FIRST) if name.startswith(first)), len(LONGEST_FIRST))


def _read(report: Path, run: Run) -> None:
    """Add outcomes and figures from pytest's report; a run that wrote none has failed."""
    try:
        cases = ElementTree.parse(report).getroot().iter("testcase")
    except ElementTree.ParseError:
        run.outcome = "FAILED"
        return
    for case in cases:
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        run.counts[outcome] = run.counts.get(outcome, 0) + 1
        for one in case.iter("property"):
            if one.get("name") == PROPERTY:
                run.figures.append([*json.loads(one.get("value", "[]")), outcome])


def runs_of(collected: Iterable[str]) -> Iterator[str]:
    """What pytest is told for each run, in order, once: a file, or a test with all its parameters."""
    names: dict[str, None] = {}
    for test in collected:
        path, _, rest = test.partition("::")
        names[f"{path}::{rest.partition('[')[0]}" if path in APART else path] = None
    yield from names


def collected(paths: list[str]) -> list[str]:
    """The ids of all slow tests below `paths`. Raises `SystemExit` where they cannot be collected."""
    command = [sys.executable, "-m", "pytest", "-m", "soak", "--collect-only", "-q", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    tests = [line for line in done.stdout.splitlines() if "::" in line and line.startswith("tests/")]
    if done.returncode or not tests:
        raise SystemExit(f"the slow tests could not be collected:\n{done.stdout}{done.stderr}")
    return tests


def main() -> None:
    """Run them, print the table, and exit with 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", help="files or folders to be run alone; all of them otherwise")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder))
        asyncio.run(soak.all(runs_of(collected(parser.parse_args().paths))))
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    for line in table([COLUMNS, *(row for run in soak.runs for row in run.figures)]):
        print(line)
    failed = [run.name for run in soak.runs if run.outcome != "passed"]
    minutes = (time.monotonic() - began) / 60
    print(f"{len(soak.runs)} runs in {minutes:.1f} minutes, {len(failed)} failed{': ' if failed else ''}{failed or ''}")
    print(f"commit {commit or 'unknown'}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
