"""What the fault tests reached, for the table at the end of a run, with the seeds to run them again."""

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
