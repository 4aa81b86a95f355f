"""What a test reached: rows of one table at the end of a run, with the seeds to run them again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PROPERTY = "figure"
"""Under this name a row is a property of its test, in pytest's reports and in the files that it writes."""


@dataclass(slots=True)
class Figures:
    """Notes of one test for the table; `seed` is what its chance came from, where it has one."""

    record: Callable[[str, object], None]
    seed: int | None = None

    def note(self, fault: str, figure: str, reached: object) -> None:
        """Of `fault`: the figure that is wanted, and what was reached, before it is asserted."""
        seed = "" if self.seed is None else str(self.seed)
        self.record(PROPERTY, json.dumps([fault, figure, str(reached), seed]))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows, the first of which names the columns, as lines."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


COLUMNS = ("fault", "figure", "reached", "seed", "test")
