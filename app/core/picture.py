"""What workers say of themselves, and the picture that this makes; both travel as bytes."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import from_json, to_json

from app.core.metrics import Example, Snapshot, Window, merge
from app.core.parts import PartName, merged

Levels = Mapping[str, float]
"""What is so much right now, by name; all of them add up over workers."""

LEVELS = (
    "requests_in_flight",
    "process_resident_bytes",
    "process_open_files",
    "database_connections",
    "database_connections_checked_out",
    "database_connections_overflow",
)
"""The names that every worker reports."""


@dataclass(slots=True)
class Report:
    """What one worker says of itself at one moment."""

    pid: int
    uptime_s: float
    counted: Snapshot
    levels: dict[str, float]
    parts: dict[str, dict[str, Any]]
    examples: dict[str, dict[int, Example]] = field(default_factory=dict[str, dict[int, Example]])
    slowest: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The stories of its slowest requests of the last hour."""

    def encode(self) -> bytes:
        """Bytes that `decode` reads."""
        beside = [self.pid, self.uptime_s, self.levels, self.parts, self.examples, self.slowest]
        return packed({"beside": beside, "counted": self.counted.plain()})

    @classmethod
    def decode(cls, data: bytes) -> "Report":
        """The report that `encode` wrote. Raises `ValueError` for anything else."""
        read = unpacked(data)
        pid, uptime_s, levels, parts, examples, slowest = read["beside"]
        return cls(pid, uptime_s, Snapshot.of_plain(read["counted"]), levels, parts, _examples(examples), slowest)


@dataclass(slots=True)
class Picture:
    """What was counted, and by whom, at one moment; pictures of several machines add up."""

    workers: list[Report]
    """Of those that are alive, one's own first; what they counted stands in `total`."""
    total: Snapshot
    windows: dict[Window, tuple[Snapshot, float]]
    """What came in each window, and how many seconds it really was."""
    started_at: float
    at: float
    """When it was taken, by the clock that `started_at` goes by."""
    replicas: int = 1
    reach: Literal["machine", "replicas", "store away"] = "machine"
    """How far it was asked: with a store that is away, other replicas are not in it."""

    @property
    def uptime_s(self) -> float:
        """Seconds since the start, whatever was done to the wall clock."""
        return self.at - self.started_at

    def level(self, name: str) -> float:
        """A level, summed over all workers."""
        return sum(worker.levels.get(name, 0.0) for worker in self.workers)

    def part(self, name: PartName) -> dict[str, Any]:
        """What the rooms of all workers say, as one."""
        return merged(name, (worker.parts.get(name, {}) for worker in self.workers), self.total)

    def examples(self) -> dict[str, dict[int, Example]]:
        """By route, the newest example of each bucket."""
        found: dict[str, dict[int, Example]] = {}
        for worker in self.workers:
            for route, places in worker.examples.items():
                known = found.setdefault(route, {})
                for place, example in places.items():
                    if place not in known or known[place][2] < example[2]:
                        known[place] = example
        return found

    def slowest(self) -> list[dict[str, Any]]:
        """The stories of the slowest requests of the last hour, the slowest first."""
        found = [story for worker in self.workers for story in worker.slowest]
        return sorted(found, key=lambda story: -story["duration_ms"])[:20]

    def plus(self, other: "Picture") -> "Picture":
        """Both together."""
        windows: dict[Window, tuple[Snapshot, float]] = {}
        for window, (counted, seconds) in self.windows.items():
            more, more_seconds = other.windows[window]
            windows[window] = (counted.plus(more), max(seconds, more_seconds))
        return Picture(
            [*self.workers, *other.workers],
            self.total.plus(other.total),
            windows,
            min(self.started_at, other.started_at),
            self.at,
            self.replicas + other.replicas,
            self.reach,
        )

    def plus_gone(self, total: Snapshot, before: Mapping[Window, Snapshot], started_at: float) -> "Picture":
        """This with what a replica counted that is gone: in `total`, and of that `before` each window."""
        windows: dict[Window, tuple[Snapshot, float]] = {
            window: (counted.plus(total.minus(before.get(window, total))), seconds)
            for window, (counted, seconds) in self.windows.items()
        }
        started_at = min(self.started_at, started_at)
        return Picture(self.workers, self.total.plus(total), windows, started_at, self.at, self.replicas, self.reach)

    def plain(self) -> dict[str, Any]:
        """Plain data that `of_plain` reads."""
        return {
            "workers": [
                [worker.pid, worker.uptime_s, worker.levels, worker.parts, worker.slowest] for worker in self.workers
            ],
            "total": self.total.plain(),
            "windows": {name: [counted.plain(), seconds] for name, (counted, seconds) in self.windows.items()},
            "started_at": self.started_at,
            "at": self.at,
        }

    @classmethod
    def of_plain(cls, read: Any) -> "Picture":
        """The picture that `plain` gave."""
        return cls(
            [
                Report(pid, uptime_s, Snapshot(), levels, parts, slowest=slowest)
                for pid, uptime_s, levels, parts, slowest in read["workers"]
            ],
            Snapshot.of_plain(read["total"]),
            {name: (Snapshot.of_plain(counted), seconds) for name, (counted, seconds) in read["windows"].items()},
            read["started_at"],
            read["at"],
        )


@dataclass(frozen=True, slots=True)
class Noted:
    """What is noted down every few seconds: all counted up to then, by machine, and the levels of that moment."""

    counted: dict[str, Snapshot]
    levels: dict[str, float]

    def encode(self) -> bytes:
        """Bytes that `decode` reads."""
        counted = {machine: snapshot.plain() for machine, snapshot in self.counted.items()}
        return packed({"counted": counted, "levels": self.levels})

    @classmethod
    def decode(cls, data: bytes) -> "Noted":
        """What `encode` wrote. Raises `ValueError` for anything else."""
        read = unpacked(data)
        return cls({name: Snapshot.of_plain(plain) for name, plain in read["counted"].items()}, read["levels"])


def fold(reports: Iterable[bytes]) -> bytes:
    """What the workers counted who wrote these `reports`, as one report; how a `Scoreboard` merges."""
    return Report(0, 0.0, merge(Report.decode(report).counted for report in reports), {}, {}).encode()


def packed(plain: object) -> bytes:
    """Bytes that `unpacked` reads."""
    return zlib.compress(to_json(plain), 1)


def unpacked(data: bytes) -> Any:
    """What `packed` wrote. Raises `ValueError` for anything else."""
    try:
        return from_json(zlib.decompress(data))
    except zlib.error as error:
        raise ValueError("these bytes are no report") from error


def _examples(plain: dict[str, dict[str, tuple[str, float, float]]]) -> dict[str, dict[int, Example]]:
    return {
        route: {int(place): (name, seconds, at) for place, (name, seconds, at) in places.items()}
        for route, places in plain.items()
    }
