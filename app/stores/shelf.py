"""Entries, posts and logs in one SQLite file, for all processes of a machine; survives restarts, and its own damage."""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from zlib import crc32

from app.errors import StoreUnavailable
from app.stores.board import Board
from app.stores.opening import alone
from app.stores.patience import patience
from app.stores.protocol import PIECES_AT_ONCE
from app.stores.slots import boot_clock, boot_id

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL, sum INTEGER NOT NULL,
    expires REAL NOT NULL, wall_stored REAL NOT NULL, wall_expires REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_expires ON entries (expires);
CREATE TABLE IF NOT EXISTS posts (
    topic TEXT NOT NULL, member TEXT NOT NULL, value BLOB NOT NULL,
    expires REAL NOT NULL, wall_stored REAL NOT NULL, wall_expires REAL NOT NULL,
    PRIMARY KEY (topic, member)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS logs (
    key BLOB NOT NULL PRIMARY KEY, length INTEGER NOT NULL,
    expires REAL NOT NULL, wall_stored REAL NOT NULL, wall_expires REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pieces (
    key BLOB NOT NULL, at INTEGER NOT NULL, value BLOB NOT NULL, sum INTEGER NOT NULL, PRIMARY KEY (key, at)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS boot (id BLOB NOT NULL);
"""
_TABLES = ("entries", "posts", "logs")
_GROUP = 500
"""Jobs of one transaction."""
_QUEUE = 5000
"""Jobs that may wait; whoever comes then is told that the store is away."""
_DEADLINE_S = 0.5
_LOCK_WAIT_S = 0.25
_CLEAN_UP_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[sqlite3.Connection], Any]
    future: "asyncio.Future[Any]"
    writes: bool


class Shelf:
    """Values by key for a time, what members post under topics, and logs; at most about `max_bytes` on disk.

    A thread of its own does all the work. Puts that wait at the same time share a transaction. The value that was
    put first goes first when there is no more room. Time to live runs on the boot clock; over a reboot, where
    nothing but the wall clock is left, an entry from the future is gone and the others live for what they had left.
    A damaged file is left aside and another one begun: the board says to all processes which one is current.
    """

    def __init__(
        self,
        folder: Path,
        board: Board,
        *,
        max_bytes: int,
        clock: Callable[[], float] = boot_clock,
        wall: Callable[[], float] = time.time,
        boot: Callable[[], bytes] = boot_id,
    ) -> None:
        """Touch no file yet; the thread starts, and opens it, with the first call. `board` is closed with this."""
        self.calls = 0
        self.failures = 0
        self.is_away = False
        self._folder = folder
        self._board = board
        self._max_bytes = max_bytes
        self._clock = clock
        self._wall = wall
        self._boot = boot
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._number = -1
        self._cleaned_at = clock()

    async def get(self, key: bytes) -> bytes | None:
        """See `SharedStore.get`."""

        def look(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute(
                "SELECT value, sum FROM entries WHERE key = ? AND expires > ?", (key, self._clock())
            ).fetchone()
            # A file may be damaged where SQLite does not notice.
            return row[0] if row is not None and _sum(key, row[0]) == row[1] else None

        return await self._do(look)

    async def put(self, key: bytes, value: bytes, *, ttl_s: float) -> None:
        """See `SharedStore.put`."""

        def keep(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO entries (key, value, sum, expires, wall_stored, wall_expires)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (key, value, _sum(key, value), *self._times(ttl_s)),
            )

        await self._do(keep, writes=True)

    async def delete(self, key: bytes) -> None:
        """See `SharedStore.delete`."""

        def forget(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM entries WHERE key = ?", (key,))

        await self._do(forget, writes=True)

    async def post(self, topic: str, member: str, value: bytes, *, ttl_s: float) -> None:
        """See `SharedStore.post`."""

        def keep(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO posts (topic, member, value, expires, wall_stored, wall_expires)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (topic, member, value, *self._times(ttl_s)),
            )

        await self._do(keep, writes=True)

    async def posts(self, topic: str) -> dict[str, bytes]:
        """See `SharedStore.posts`."""

        def look(connection: sqlite3.Connection) -> dict[str, bytes]:
            rows = connection.execute(
                "SELECT member, value FROM posts WHERE topic = ? AND expires > ?", (topic, self._clock())
            )
            return dict(rows.fetchall())

        return await self._do(look)

    async def append(self, key: bytes, pieces: Sequence[bytes], *, at: int, ttl_s: float) -> bool:
        """See `SharedStore.append`."""

        def add(connection: sqlite3.Connection) -> bool:
            row = connection.execute(
                "SELECT length FROM logs WHERE key = ? AND expires > ?", (key, self._clock())
            ).fetchone()
            length = 0 if row is None else row[0]
            if at > length:
                return False
            if row is None:
                if not pieces:
                    return True
                connection.execute("DELETE FROM pieces WHERE key = ?", (key,))  # of one that has expired
            fresh = [(key, number, piece, _sum(key, piece)) for number, piece in enumerate(pieces, at)][length - at :]
            connection.executemany("INSERT INTO pieces (key, at, value, sum) VALUES (?, ?, ?, ?)", fresh)
            connection.execute(
                "INSERT OR REPLACE INTO logs (key, length, expires, wall_stored, wall_expires) VALUES (?, ?, ?, ?, ?)",
                (key, length + len(fresh), *self._times(ttl_s)),
            )
            return True

        return await self._do(add, writes=True)

    async def read_on(self, key: bytes, *, at: int) -> list[bytes] | None:
        """See `SharedStore.read_on`."""

        def look(connection: sqlite3.Connection) -> list[bytes] | None:
            # One statement, since another process may write between two.
            rows = connection.execute(
                "SELECT value, sum FROM logs LEFT JOIN pieces ON pieces.key = logs.key AND at >= ?"
                " WHERE logs.key = ? AND expires > ? ORDER BY at LIMIT ?",
                (at, key, self._clock(), PIECES_AT_ONCE),
            ).fetchall()
            if not rows or any(value is not None and _sum(key, value) != told for value, told in rows):
                return None
            return [value for value, _ in rows if value is not None]

        return await self._do(look)

    async def ping(self) -> None:
        """Return if the file can be read."""
        await self._do(lambda connection: connection.execute("SELECT 1 FROM entries LIMIT 1").fetchone())

    async def aclose(self) -> None:
        """Finish what waits, close the file and end the thread."""
        if self._thread is None:
            self._board.close()
            return
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _do(self, work: Callable[[sqlite3.Connection], _T], *, writes: bool = False) -> _T:
        self.calls += 1
        if self._jobs.qsize() >= _QUEUE:
            self.failures += 1
            raise StoreUnavailable("this machine's shared store is behind with its work")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mnemosine-shelf", daemon=True)
            self._thread.start()
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(work, future, writes))
        try:
            async with patience(_DEADLINE_S):
                return await future
        except TimeoutError:
            self.failures += 1
            raise StoreUnavailable("this machine's shared store does not answer") from None

    def _times(self, ttl_s: float) -> tuple[float, float, float]:
        wall = self._wall()
        return self._clock() + ttl_s, wall, wall + ttl_s

    # From here on: in the thread.

    def _run(self) -> None:
        ending = False
        while not ending:
            jobs, ending = self._collect()
            self._work(jobs)
        self._close()
        self._board.close()

    def _collect(self) -> tuple[list[_Job], bool]:
        """What waits, and whether that is the last."""
        jobs: list[_Job] = []
        with suppress(Empty):
            while len(jobs) < _GROUP:
                job = self._jobs.get(timeout=0 if jobs else _CLEAN_UP_EVERY_S)
                if job is None:
                    return jobs, True
                jobs.append(job)
        return jobs, False

    def _work(self, jobs: list[_Job]) -> None:
        waiting = [job for job in jobs if not job.future.done()]  # whoever has left needs nothing
        for last_try in (False, True):
            try:
                self._try(waiting)
            except (sqlite3.Error, OSError) as error:
                begun_anew = self._part_from(error)
                if begun_anew and not last_try:
                    continue
                self.failures += len(waiting)
                away = StoreUnavailable("this machine's shared store cannot be used right now")
                _settle([(job.future, away) for job in waiting])
            return

    def _try(self, waiting: list[_Job]) -> None:
        connection = self._current()
        done = [(job.future, job.work(connection)) for job in waiting if not job.writes]
        self._works(shown=bool(done))
        _settle(done)
        writing = [job for job in waiting if job.writes]
        if writing:
            connection.execute("BEGIN IMMEDIATE")
            try:
                done = [(job.future, job.work(connection)) for job in writing]
                self._make_room(connection, len(writing))
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            self._works(shown=True)
            _settle(done)
        if self._clock() - self._cleaned_at > _CLEAN_UP_EVERY_S:
            self._clean_up(connection)

    def _works(self, *, shown: bool) -> None:
        """Say so where it was away; before whoever waits is told, so that they see it too."""
        if shown and self.is_away:
            self.is_away = False
            _log.warning("this machine's shared store works again")

    def _part_from(self, error: Exception) -> bool:
        """Let go of the file, unless it is only busy; leave it aside for ever where it is damaged, and say so."""
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return False
        self._close()
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            _log.warning("%s is damaged (%s); it is left aside and begun anew", self._path(self._number), error)
            if self._board.generation("shelf") == self._number:
                self._board.bump("shelf")
            return True
        if not self.is_away:
            _log.warning("this machine's shared store is away: %s", error)
        self.is_away = True
        return False

    def _current(self) -> sqlite3.Connection:
        number = self._board.generation("shelf")
        if self._connection is None or number != self._number:
            self._close()
            self._number = number
            with alone(self._folder):
                self._connection = self._open(number)
        return self._connection

    def _open(self, number: int) -> sqlite3.Connection:
        path = self._path(number)
        # One damaged file is enough for whoever wants to look at it.
        for old in self._folder.glob("entries.*.db*"):
            told = old.name.split(".")[1]
            if told.isdigit() and int(told) < number - 1:
                old.unlink(missing_ok=True)
        path.touch(mode=0o600)
        connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            # NORMAL: a power cut costs the last puts but does not damage the file; nothing waits for the disk.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA journal_size_limit = 8388608")
            connection.executescript(_SCHEMA)
            self._arrive(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _arrive(self, connection: sqlite3.Connection) -> None:
        """After a reboot, translate every moment to the new boot's clock."""
        boot = self._boot()
        connection.execute("BEGIN IMMEDIATE")
        try:
            row = connection.execute("SELECT id FROM boot").fetchone()
            if row is None or row[0] != boot:
                wall, now = self._wall(), self._clock()
                for table in _TABLES:
                    connection.execute(
                        f"DELETE FROM {table} WHERE wall_expires <= ? OR wall_stored > ?",  # noqa: S608 - our names
                        (wall, wall),
                    )
                    connection.execute(
                        f"UPDATE {table} SET expires = ? + wall_expires - ?",  # noqa: S608
                        (now, wall),
                    )
                connection.execute("DELETE FROM boot")
                connection.execute("INSERT INTO boot (id) VALUES (?)", (boot,))
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _make_room(self, connection: sqlite3.Connection, added: int) -> None:
        page = _number(connection, "PRAGMA page_size")
        at_once = max(16, 2 * added)
        while (_number(connection, "PRAGMA page_count") - _number(connection, "PRAGMA freelist_count")) * page > (
            self._max_bytes
        ):
            gone = connection.execute(
                "DELETE FROM entries WHERE id IN (SELECT id FROM entries ORDER BY id LIMIT ?)", (at_once,)
            ).rowcount
            if not gone:
                return

    def _clean_up(self, connection: sqlite3.Connection) -> None:
        self._cleaned_at = self._clock()
        for table in _TABLES:
            connection.execute(f"DELETE FROM {table} WHERE expires <= ?", (self._cleaned_at,))  # noqa: S608
        connection.execute("DELETE FROM pieces WHERE key NOT IN (SELECT key FROM logs)")

    def _path(self, number: int) -> Path:
        return self._folder / f"entries.{number}.db"

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _number(connection: sqlite3.Connection, question: str) -> int:
    return connection.execute(question).fetchone()[0]


def _sum(key: bytes, value: bytes) -> int:
    return crc32(value, crc32(key))


def _settle(done: list[tuple["asyncio.Future[Any]", Any]]) -> None:
    """Give each waiting future its result, or its error, in the loop that it belongs to."""
    if not done:
        return

    def settle() -> None:
        for future, result in done:
            if future.done():
                continue
            if isinstance(result, StoreUnavailable):
                future.set_exception(result)
            else:
                future.set_result(result)

    with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
        done[0][0].get_loop().call_soon_threadsafe(settle)
