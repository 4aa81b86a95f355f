"""What the fault tests reached: one table at the end of a run, with the seeds to run them again."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(slots=True)
class Figures:
    """Notes of one test for the table; `seed` is what its chance came from, where it has one."""

    record: Callable[[str, object], None]
    seed: int | None = None

    def note(self, fault: str, figure: str, reached: object) -> None:
        """Of `fault`: the figure that is wanted, and what was reached, before it is asserted."""
        self.record("figure", (fault, figure, str(reached), "" if self.seed is None else str(self.seed)))


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Figures:
    """Where a test notes its figures."""
    return Figures(record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, failed tests included."""
    rows = [
        (*value, outcome)
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
        for name, value in report.user_properties
        if name == "figure"
    ]
    if not rows:
        return
    table = [("fault", "figure", "reached", "seed", "test"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(5)]
    terminalreporter.section("figures of the faults")
    for row in table:
        terminalreporter.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
