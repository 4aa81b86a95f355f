"""The numbers of everybody: of all workers of this machine, dead ones included, and of all replicas."""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from app.core.metrics import WINDOWS_S, Metrics, Snapshot, Window, merge
from app.core.parts import Part, growing
from app.core.picture import Levels, Noted, Picture, Report
from app.core.replicas import Others, Replicas
from app.core.story import Told, read, written
from app.core.vitals import Vitals, VitalsReader
from app.errors import StoreUnavailable
from app.stores.protocol import SharedStore
from app.stores.scoreboard import Scoreboard

_log = logging.getLogger(__name__)

NOTE_EVERY_S = 5.0
_POST_EVERY_S = 1.0
_KEEP_EVERY_S = 120.0
_VITALS_EVERY_S = 2.0
_STORIES_SHARED = 20
_STORY_TTL_S = 900.0


@dataclass(slots=True)
class _Heard:
    """What others said, read a moment ago."""

    at: float
    past: Snapshot
    live: list[Report]
    baselines: dict[Window, tuple[dict[str, Snapshot], float]]
    """For each window: what everybody had counted before it began, by name, and when that was."""
    others: Others = field(default_factory=Others)
    store_answers: bool = True


_NOTHING = Snapshot()


class Totals:
    """Gives everybody's numbers, whichever worker is asked.

    Twice a second this worker shows its report to the others of the machine; one of them notes the sum down for the
    windows and the charts, and tells it to other replicas where they share a store. A worker that is killed loses
    what it counted after its last report, a replica what it counted after its last word to the others (1 s);
    `on_death` hears the names of such workers, each in one of the others. What is read of others is at most `fresh_s`
    old; one's own numbers are live.
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
        on_death: Callable[[list[str]], None] | None = None,
        every_s: float = 0.5,
        fresh_s: float = 0.5,
    ) -> None:
        self.vitals: Vitals | None = None
        self.scoreboard = scoreboard
        self._metrics = metrics
        self._parts = parts
        self._levels = levels
        self._reader = VitalsReader(data_dir)
        self._shared = store if store is not None and store.kind == "redis" else None
        self._replicas: Replicas | None = None
        if self._shared is not None:
            self._replicas = Replicas(
                self._shared, machine=scoreboard.machine, run=scoreboard.run, clock=scoreboard.now
            )
        self._every_s = every_s
        self._fresh_s = fresh_s
        self._on_death = on_death
        self._born = scoreboard.now()
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
        try:
            try:
                await asyncio.to_thread(self.scoreboard.say, self._own().encode())
                await self._say_last()
            finally:
                await asyncio.to_thread(self.scoreboard.close)
        except (OSError, sqlite3.Error) as error:
            _log.error("the last numbers of this worker are lost: %s", error)

    async def read(self) -> Picture:
        """Everything counted up to now."""
        heard = await self._fresh()
        picture = self._machine(heard)
        if self._shared is not None:
            picture.reach = "replicas" if heard.store_answers else "store away"
        for machine in heard.others.live.values():
            picture = picture.plus(machine)
        for name, gone in heard.others.gone.items():
            # Where it is not known what it had counted before a window, nothing of it is in the window.
            before: dict[Window, Snapshot] = {
                window: counted.get(name, gone.total) for window, (counted, _) in heard.baselines.items()
            }
            picture = picture.plus_gone(gone.total, before, gone.started_at)
        return picture

    async def report(self) -> None:
        """Show this worker's numbers, and do what is due for all of them. Raises what the scoreboard raises."""
        own = self._own()
        fresh = self._metrics.stories.take_unshown()
        dead, is_our_turn = await asyncio.to_thread(self._say, own, fresh)
        if dead and self._on_death is not None:
            self._on_death(dead)
        if is_our_turn:
            heard = await self._fresh()
            await asyncio.to_thread(self._note, self._machine(heard), heard)
        if self._shared is None or self._replicas is None:
            return
        if await asyncio.to_thread(self.scoreboard.take_turn, "post", every_s=_POST_EVERY_S):
            with suppress(StoreUnavailable):
                await self._replicas.say(self._machine(await self._fresh()))
        if await asyncio.to_thread(self.scoreboard.take_turn, "keep", every_s=_KEEP_EVERY_S):
            with suppress(StoreUnavailable):
                await self._replicas.keep()
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
        return Report(
            pid, self.scoreboard.now() - self._born, counted, levels, parts, self._metrics.examples(), slowest
        )

    def _machine(self, heard: _Heard) -> Picture:
        own = self._own()
        total = merge([heard.past, *(report.counted for report in heard.live), own.counted])
        now, started_at = self.scoreboard.now(), self.scoreboard.started_at
        windows: dict[Window, tuple[Snapshot, float]] = {}
        for window in WINDOWS_S:
            counted, since = heard.baselines.get(window, ({}, started_at))
            before = counted.get(self.scoreboard.machine, _NOTHING)
            windows[window] = (total.minus(before), max(1e-9, now - since))
        return Picture([own, *heard.live], total, windows, started_at, now)

    async def _say_last(self) -> None:
        """Leave what this machine has counted to the other replicas.

        Others of its workers may leave at the same time: whoever speaks last has looked again after it had spoken.
        """
        said: Snapshot | None = None
        while self._replicas is not None:
            own = self._machine(await asyncio.to_thread(self._hear))
            if own.total == said:
                break
            said = own.total
            try:
                await self._replicas.say_last(own)
            except StoreUnavailable:
                break

    async def _fresh(self) -> _Heard:
        async with self._hearing:
            if self._heard is None or monotonic() - self._heard.at > self._fresh_s:
                try:
                    heard = await asyncio.to_thread(self._hear)
                except (OSError, sqlite3.Error) as error:
                    _log.warning("the numbers of the other workers cannot be read: %s", error)
                    heard = _Heard(monotonic(), Snapshot(), [], {})
                if self._replicas is not None:
                    try:
                        heard.others = await self._replicas.hear()
                    except StoreUnavailable:
                        heard.store_answers = False
                self._heard = heard
            return self._heard

    # What follows blocks, and runs in threads.

    def _say(self, own: Report, fresh: list[Told]) -> tuple[list[str], bool]:
        """Show the report; gives who was found dead, and whether it is our turn to note the sum down."""
        if monotonic() - self._vitals_at >= _VITALS_EVERY_S:
            self._vitals_at = monotonic()
            self.vitals = self._reader.read()
        self.scoreboard.say(own.encode())
        self.scoreboard.keep((told.request_id, written(told, own.pid)) for told in fresh)
        return self.scoreboard.fold_dead(), self.scoreboard.take_turn("note", every_s=NOTE_EVERY_S)

    def _hear(self) -> _Heard:
        reports = self.scoreboard.hear()
        past = Report.decode(reports.past).counted if reports.past is not None else Snapshot()
        live = [
            Report.decode(said) for member, said in sorted(reports.live.items()) if member != self.scoreboard.member
        ]
        now = self.scoreboard.now()
        baselines: dict[Window, tuple[dict[str, Snapshot], float]] = {}
        for window, seconds in WINDOWS_S.items():
            moment = self.scoreboard.last_before(now - seconds)
            if moment is not None:
                baselines[window] = (Noted.decode(moment.body).counted, moment.at)
        return _Heard(monotonic(), past, live, baselines)

    def _note(self, own: Picture, heard: _Heard) -> None:
        others = heard.others
        counted = {name: replica.total for name, replica in (*others.live.items(), *others.gone.items())}
        counted[self.scoreboard.machine] = own.total
        levels: dict[str, float] = {}
        for picture in (own, *others.live.values()):
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


def _story_key(request_id: str) -> bytes:
    return b"story:" + request_id.encode()
