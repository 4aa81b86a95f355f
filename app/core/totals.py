"""The numbers of everybody: of all workers of this machine, dead ones included, and of all replicas."""

import asyncio
import logging
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time
from typing import Any, Literal

from pydantic_core import from_json, to_json

from app.core.metrics import WINDOWS_S, Example, Metrics, Snapshot, Window, merge
from app.core.parts import Part, PartName, growing, merged
from app.core.story import Told, read, written
from app.core.vitals import Vitals, VitalsReader
from app.errors import StoreUnavailable
from app.stores.protocol import SharedStore
from app.stores.scoreboard import Scoreboard

_log = logging.getLogger(__name__)

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

NOTE_EVERY_S = 5.0
_POST_EVERY_S = 1.0
_POST_TTL_S = 6.0
_VITALS_EVERY_S = 2.0
_TOPIC = "numbers"
_STORIES_SHARED = 20
_STORY_TTL_S = 900.0


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
        return _packed({"beside": beside, "counted": self.counted.plain()})

    @classmethod
    def decode(cls, data: bytes) -> "Report":
        """The report that `encode` wrote. Raises `ValueError` for anything else."""
        read = _unpacked(data)
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
    replicas: int = 1
    reach: Literal["machine", "replicas", "store away"] = "machine"
    """How far it was asked: with a store that is away, other replicas are not in it."""

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
            self.replicas + other.replicas,
            self.reach,
        )

    def encode(self) -> bytes:
        """Bytes that `decode` reads."""
        return _packed(
            {
                "workers": [
                    [worker.pid, worker.uptime_s, worker.levels, worker.parts, worker.slowest]
                    for worker in self.workers
                ],
                "total": self.total.plain(),
                "windows": {name: [counted.plain(), seconds] for name, (counted, seconds) in self.windows.items()},
                "started_at": self.started_at,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> "Picture":
        """The picture that `encode` wrote. Raises `ValueError` for anything else."""
        read = _unpacked(data)
        return cls(
            [
                Report(pid, uptime_s, Snapshot(), levels, parts, slowest=slowest)
                for pid, uptime_s, levels, parts, slowest in read["workers"]
            ],
            Snapshot.of_plain(read["total"]),
            {name: (Snapshot.of_plain(counted), seconds) for name, (counted, seconds) in read["windows"].items()},
            read["started_at"],
        )


@dataclass(frozen=True, slots=True)
class Noted:
    """What is noted down every few seconds: all counted up to then, by machine, and the levels of that moment."""

    counted: dict[str, Snapshot]
    levels: dict[str, float]

    def encode(self) -> bytes:
        """Bytes that `decode` reads."""
        counted = {machine: snapshot.plain() for machine, snapshot in self.counted.items()}
        return _packed({"counted": counted, "levels": self.levels})

    @classmethod
    def decode(cls, data: bytes) -> "Noted":
        """What `encode` wrote. Raises `ValueError` for anything else."""
        read = _unpacked(data)
        return cls({name: Snapshot.of_plain(plain) for name, plain in read["counted"].items()}, read["levels"])


@dataclass(slots=True)
class _Heard:
    """What others said, read a moment ago."""

    at: float
    past: Snapshot
    live: list[Report]
    baselines: dict[Window, tuple[Snapshot, float]]
    """For each window: what was counted before it began, and when that was."""
    machines: dict[str, Picture] = field(default_factory=dict[str, Picture])
    store_answers: bool = True


_NOTHING = Snapshot()


class Totals:
    """Gives everybody's numbers, whichever worker is asked.

    Twice a second this worker shows its report to the others of the machine; one of them notes the sum down for the
    windows and the charts, and posts it to other replicas where they share a store. A worker that is killed loses
    what it counted after its last report. What is read of others is at most `fresh_s` old; one's own numbers are live.
    A store that is away costs the numbers of the other replicas and nothing else.
    """

    def __init__(
        self,
        metrics: Metrics,
        scoreboard: Scoreboard,
        *,
        parts: Mapping[str, Callable[[], Part]],
        levels: Callable[[], Levels],
        data_dir: Path,
        store: SharedStore | None = None,
        every_s: float = 0.5,
        fresh_s: float = 0.5,
        clock: Callable[[], float] = time,
    ) -> None:
        self.vitals: Vitals | None = None
        self.scoreboard = scoreboard
        self._metrics = metrics
        self._parts = parts
        self._levels = levels
        self._reader = VitalsReader(data_dir)
        self._shared = store if store is not None and store.kind == "redis" else None
        self._every_s = every_s
        self._fresh_s = fresh_s
        self._clock = clock
        self._born = clock()
        self._vitals_at = -_VITALS_EVERY_S
        self._heard: _Heard | None = None
        self._hearing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def start(self) -> None:
        """Begin to report; `aclose()` ends it."""
        self._task = asyncio.create_task(self._report_for_ever(), name="totals")

    async def aclose(self) -> None:
        """Report a last time and leave what was counted to the others."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        own = self._own()
        await asyncio.to_thread(self._leave, own)

    async def read(self) -> Picture:
        """Everything counted up to now."""
        heard = await self._fresh()
        picture = self._machine(heard)
        if self._shared is not None:
            picture.reach = "replicas" if heard.store_answers else "store away"
        for machine in heard.machines.values():
            picture = picture.plus(machine)
        return picture

    async def report(self) -> None:
        """Show this worker's numbers, and do what is due for all of them. Raises what the scoreboard raises."""
        own = self._own()
        fresh = self._metrics.stories.take_unshown()
        if await asyncio.to_thread(self._say, own, fresh):
            heard = await self._fresh()
            await asyncio.to_thread(self._note, self._machine(heard), heard)
        if self._shared is None:
            return
        if await asyncio.to_thread(self.scoreboard.take_turn, "post", every_s=_POST_EVERY_S):
            packed = await asyncio.to_thread(self._machine(await self._fresh()).encode)
            with suppress(StoreUnavailable):
                await self._shared.post(_TOPIC, self.scoreboard.machine, packed, ttl_s=_POST_TTL_S)
        # Other replicas know of what was worth a look: not of every hit.
        for told in [told for told in fresh if told.is_remarkable][-_STORIES_SHARED:]:
            with suppress(StoreUnavailable):
                await self._shared.put(_story_key(told.request_id), written(told, os.getpid()), ttl_s=_STORY_TTL_S)

    async def story(self, request_id: str) -> dict[str, Any] | None:
        """What happened to a recent request, whichever worker of this machine, or replica, answered it."""
        told = self._metrics.stories.find(request_id)
        if told is not None:
            return told.plain(os.getpid())
        shown = await asyncio.to_thread(self.scoreboard.find, request_id)
        if shown is None and self._shared is not None:
            with suppress(StoreUnavailable):
                shown = await self._shared.get(_story_key(request_id))
        return read(shown) if shown is not None else None

    async def _report_for_ever(self) -> None:
        while True:
            try:
                await self.report()
                if self._failing:
                    _log.warning("the workers' numbers are shared again")
                self._failing = False
            except (OSError, sqlite3.Error) as error:
                # A full disk must not stop anything else; what this worker counted is said again next time.
                if not self._failing:
                    _log.error("the workers' numbers cannot be shared: %s", error)
                self._failing = True
            await asyncio.sleep(self._every_s)

    def _own(self) -> Report:
        parts = {name: dict(part()) for name, part in self._parts.items()}
        counted = self._metrics.snapshot()
        counted.counts.update(growing(parts))
        levels = dict(self._levels())
        if self.vitals is not None:
            levels["process_resident_bytes"] = self.vitals.rss_bytes
            levels["process_open_files"] = self.vitals.open_files
        pid = os.getpid()
        slowest = [told.plain(pid) for told in self._metrics.stories.slowest()]
        return Report(pid, self._clock() - self._born, counted, levels, parts, self._metrics.examples(), slowest)

    def _machine(self, heard: _Heard) -> Picture:
        own = self._own()
        total = merge([heard.past, *(report.counted for report in heard.live), own.counted])
        now, started_at = self._clock(), self.scoreboard.started_at
        windows: dict[Window, tuple[Snapshot, float]] = {}
        for window in WINDOWS_S:
            counted, since = heard.baselines.get(window, (_NOTHING, started_at))
            windows[window] = (total.minus(counted), max(1e-9, now - since))
        return Picture([own, *heard.live], total, windows, started_at)

    async def _fresh(self) -> _Heard:
        async with self._hearing:
            if self._heard is None or monotonic() - self._heard.at > self._fresh_s:
                try:
                    heard = await asyncio.to_thread(self._hear)
                except (OSError, sqlite3.Error) as error:
                    _log.warning("the numbers of the other workers cannot be read: %s", error)
                    heard = _Heard(monotonic(), Snapshot(), [], {})
                if self._shared is not None:
                    try:
                        said = await self._shared.posts(_TOPIC)
                        said.pop(self.scoreboard.machine, None)
                        heard.machines = await asyncio.to_thread(_decoded, said)
                    except StoreUnavailable:
                        heard.store_answers = False
                self._heard = heard
            return self._heard

    # What follows blocks, and runs in threads.

    def _say(self, own: Report, fresh: list[Told]) -> bool:
        """Show the report; `True` where it is this worker's turn to note the sum down."""
        if monotonic() - self._vitals_at >= _VITALS_EVERY_S:
            self._vitals_at = monotonic()
            self.vitals = self._reader.read()
        self.scoreboard.say(own.encode())
        self.scoreboard.keep((told.request_id, written(told, own.pid)) for told in fresh)
        self.scoreboard.fold_dead()
        return self.scoreboard.take_turn("note", every_s=NOTE_EVERY_S)

    def _hear(self) -> _Heard:
        reports = self.scoreboard.hear()
        past = Report.decode(reports.past).counted if reports.past is not None else Snapshot()
        live = [
            Report.decode(said) for member, said in sorted(reports.live.items()) if member != self.scoreboard.member
        ]
        now, machine = self._clock(), self.scoreboard.machine
        baselines: dict[Window, tuple[Snapshot, float]] = {}
        for window, seconds in WINDOWS_S.items():
            moment = self.scoreboard.last_before(now - seconds)
            if moment is not None:
                baselines[window] = (Noted.decode(moment.body).counted.get(machine, _NOTHING), moment.at)
        return _Heard(monotonic(), past, live, baselines)

    def _note(self, own: Picture, heard: _Heard) -> None:
        counted = {name: machine.total for name, machine in heard.machines.items()}
        counted[self.scoreboard.machine] = own.total
        levels: dict[str, float] = {}
        for picture in (own, *heard.machines.values()):
            for worker in picture.workers:
                for name, value in worker.levels.items():
                    levels[name] = levels.get(name, 0.0) + value
        pool = own.part("agent_pool")
        levels["agent_pool_size"] = pool.get("size", 0)
        levels["agent_pool_in_use"] = pool.get("in_use", 0)
        if self.vitals is not None:
            levels["system_cpu_percent"] = self.vitals.cpu_percent
            levels["system_memory_percent"] = self.vitals.memory.percent
        self.scoreboard.note(Noted(counted, levels).encode())

    def _leave(self, own: Report) -> None:
        try:
            try:
                self.scoreboard.say(own.encode())
            finally:
                self.scoreboard.close()
        except (OSError, sqlite3.Error) as error:
            _log.error("the last numbers of this worker are lost: %s", error)


def fold(reports: Iterable[bytes]) -> bytes:
    """What the workers counted who wrote these `reports`, as one report; how a `Scoreboard` merges."""
    return Report(0, 0.0, merge(Report.decode(report).counted for report in reports), {}, {}).encode()


def _decoded(said: Mapping[str, bytes]) -> dict[str, Picture]:
    pictures: dict[str, Picture] = {}
    for machine, packed in said.items():
        try:
            pictures[machine] = Picture.decode(packed)
        except ValueError:
            _log.warning("the replica %s speaks another version; its numbers are left out", machine)
    return pictures


def _story_key(request_id: str) -> bytes:
    return b"story:" + request_id.encode()


def _examples(plain: dict[str, dict[str, tuple[str, float, float]]]) -> dict[str, dict[int, Example]]:
    return {
        route: {int(place): (name, seconds, at) for place, (name, seconds, at) in places.items()}
        for route, places in plain.items()
    }


def _packed(plain: object) -> bytes:
    return zlib.compress(to_json(plain), 1)


def _unpacked(data: bytes) -> Any:
    try:
        return from_json(zlib.decompress(data))
    except zlib.error as error:
        raise ValueError("these bytes are no report") from error
