"""The record of runs, written in groups so that a prompt never waits for a commit."""

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import perf_counter, time
from typing import Any, Literal

from app.core.run import Answer, Caller
from app.db.async_session import Database
from app.db.cached_answers import CachedAnswers, add_cached_answers
from app.db.runs import RunRow, save_runs
from app.errors import DatabaseUnavailable, MnemosineError

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recording:
    """A run while it happens; what its block ends with decides its status."""

    row: RunRow
    started: float
    answer: Answer | None = None

    def answered(self, answer: Answer) -> None:
        """Keep what the run gave; without this the run counts as failed."""
        self.answer = answer


class RunLog:
    """Runs on their way to the database.

    A run is handed over when it begins and again when it ends; every `interval_s` one transaction writes what has
    come together. A row committed alone costs 700 µs, in groups of 100 it costs 2 µs (measured on SQLite in WAL
    mode). At most `interval_s` of rows are lost by `kill -9`, none by SIGTERM: `aclose()` writes the rest.

    While the database is away rows wait, up to `max_waiting`; beyond that the oldest are dropped and counted.
    """

    def __init__(
        self,
        database: Database,
        *,
        worker: str,
        interval_s: float = 0.25,
        hits_interval_s: float = 0.9,
        max_waiting: int = 20_000,
    ) -> None:
        self.dropped = 0
        self._database = database
        self._worker = worker
        self._interval_s = interval_s
        self._hits_interval_s = max(interval_s, hits_interval_s)
        self._max_waiting = max_waiting
        self._waiting: dict[str, RunRow] = {}
        self._hits: dict[tuple[str, str, str, int], CachedAnswers] = {}
        self._news = asyncio.Event()
        self._writing = asyncio.Lock()
        self._away = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin writing; `aclose()` ends it."""
        self._task = asyncio.create_task(self._write_for_ever(), name="run-log")

    @contextmanager
    def recording(
        self, run_id: str, *, caller: Caller, agent: str, model: str, conversation_id: str | None = None
    ) -> Generator[Recording]:
        """Record the block as one run: done, failed, or cancelled where the block was cancelled."""
        row = RunRow(
            id=run_id,
            user_id=caller.id,
            agent=agent,
            model=model,
            conversation_id=conversation_id,
            worker=self._worker,
            status="running",
            started_at=datetime.now(UTC),
        )
        recording = Recording(row, perf_counter())
        self._hand_over(row)
        try:
            yield recording
        except MnemosineError as error:
            self._finish(recording, "failed", error.code)
            raise
        except Exception:
            self._finish(recording, "failed", "internal-error")
            raise
        except BaseException:
            # Cancellation: the client left, or the server is going down.
            self._finish(recording, "cancelled", None)
            raise
        answer = recording.answer
        if answer is not None and answer.cache == "HIT" and self._waiting.pop(row.id, None) is not None:
            self.count_hit(caller, answer)
            return
        self._finish(recording, "done" if answer else "failed", None)

    def count_hit(self, caller: Caller, answer: Answer) -> None:
        """Count an answer from memory. They are too many for a row each: 10,000 a second on one core (benchmarks/)."""
        minute = int(time()) // 60
        place = (caller.id, answer.agent, answer.model, minute)
        row = self._hits.get(place)
        if row is None:
            at = datetime.fromtimestamp(minute * 60, UTC)
            row = self._hits[place] = CachedAnswers(caller.id, answer.agent, answer.model, at)
        row.answers += 1
        row.input_tokens += answer.usage.input_tokens
        row.output_tokens += answer.usage.output_tokens
        if answer.cost_usd is not None:
            row.cost_usd += answer.cost_usd
        self._news.set()

    async def flush(self) -> None:
        """Write what is waiting, now. Raises `DatabaseUnavailable`; the rows then wait on."""
        async with self._writing:
            batch, self._waiting = self._waiting, {}
            hits, self._hits = self._hits, {}
            if not batch and not hits:
                return
            try:
                async with self._database.write() as session:
                    await save_runs(session, list(batch.values()))
                    await add_cached_answers(session, list(hits.values()))
            except BaseException:
                # Rows that came meanwhile are newer than those of the batch.
                self._waiting = batch | self._waiting
                self._count_again(hits)
                self._bound()
                raise

    async def aclose(self) -> None:
        """Stop, and write what is waiting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self.flush()
        except DatabaseUnavailable as error:
            _log.error("%d run records are lost: %s", len(self._waiting), error)

    def _finish(
        self, recording: Recording, status: Literal["done", "failed", "cancelled"], error_code: str | None
    ) -> None:
        outcome: dict[str, Any] = {}
        if (answer := recording.answer) is not None:
            outcome = {
                "cached": answer.cache in ("HIT", "COALESCED"),
                "input_tokens": answer.usage.input_tokens,
                "output_tokens": answer.usage.output_tokens,
                "requests": answer.usage.requests,
                "cost_usd": answer.cost_usd,
                "model_ms": answer.model_s * 1000,
            }
        row = replace(
            recording.row,
            status=status,
            error_code=error_code,
            finished_at=datetime.now(UTC),
            duration_ms=(perf_counter() - recording.started) * 1000,
            **outcome,
        )
        self._hand_over(row)

    def _count_again(self, hits: dict[tuple[str, str, str, int], CachedAnswers]) -> None:
        for place, later in self._hits.items():
            if (row := hits.get(place)) is None:
                hits[place] = later
                continue
            row.answers += later.answers
            row.input_tokens += later.input_tokens
            row.output_tokens += later.output_tokens
            row.cost_usd += later.cost_usd
        # The oldest minutes go first where the database is away for very long.
        self._hits = dict(list(hits.items())[-self._max_waiting :])

    def _hand_over(self, row: RunRow) -> None:
        # A run that begins and ends between two writes is one row, written once.
        self._waiting[row.id] = row
        self._bound()
        self._news.set()

    def _bound(self) -> None:
        while len(self._waiting) > self._max_waiting:
            del self._waiting[next(iter(self._waiting))]
            self.dropped += 1

    async def _write_for_ever(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await asyncio.sleep(self._interval_s)
            if not self._waiting:
                # Counts of hits alone come with every hit, and say the same when they are written less often.
                await asyncio.sleep(self._hits_interval_s - self._interval_s)
            try:
                await self.flush()
            except DatabaseUnavailable as error:
                self._news.set()
                if not self._away:
                    _log.warning("run records wait in memory: %s", error)
                self._away = True
            else:
                if self._away:
                    _log.warning("run records are written again")
                self._away = False
