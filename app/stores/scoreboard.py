"""A scoreboard: what every worker of this machine says of itself, kept beyond the death of any of them.

Bytes come in and go out; what they mean, and how two of them add up, the owner says by `merge`.
"""

import fcntl
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

from app.stores.opening import alone
from app.stores.slots import boot_clock

Merge = Callable[[Iterable[bytes]], bytes]
"""How reports add up to one."""

_HEADER = struct.Struct("<QII")
_PLACE_BYTES = 4 * 1024 * 1024
_RECORD = struct.Struct("<II")
_RECORD_BYTES = 4096
_RECORDS = 512
_BUSY_S = 2.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS folded (member TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS moments (at REAL PRIMARY KEY, run TEXT NOT NULL, body BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Reports:
    """What was said up to now: `past` by those who are gone, `live` by the others, by name."""

    past: bytes | None
    live: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Moment:
    """What was noted down at one time (by `Scoreboard.now`) of one run of the server."""

    at: float
    run: str
    body: bytes


class Scoreboard:
    """One worker's place among those of one folder.

    Each worker writes its report into a file of its own, in place, twice over, so that a reader finds a whole one
    whenever the writer dies. The file is locked as long as the worker lives: the kernel, not a pid, says who is
    dead. A dead worker's last report is merged into `past` exactly once, by whoever notices, and its file removed.

    A *run* is the server from its start to its end. It goes on while one of its workers lives, and when a new one
    comes from the same `founder` (a token that the supervising process made before it forked); else a new run
    begins and everything counts from zero. Moments outlive runs, since charts do. All workers of a run go by one clock,
    `now()`: the wall clock as it stood when the run began, which nobody sets afterwards.

    Every method may block for milliseconds: call them in a thread. Raises `OSError` or `sqlite3.Error`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        founder: str,
        merge: Merge,
        member: str | None = None,
        clock: Callable[[], float] = time.time,
        boot: Callable[[], float] = boot_clock,
        max_moments: int = 2000,
    ) -> None:
        """Take a place in `folder`, which is made where it is missing (mode 0700), under a name used once."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self.member = member or uuid4().hex
        self._folder = folder
        self._merge = merge
        self._clock = clock
        self._boot = boot
        self._max_moments = max_moments
        self._written = 0
        self._lock = threading.Lock()
        with alone(folder):
            self._database = _open_database(folder / "history.db")
        self._file = self._records = -1
        self._kept = 0
        self.found_dead: list[str] = []
        """Who died before this one came."""
        try:
            with self._transaction():
                dead = self._enter(founder)
            _remove(dead)
            self.found_dead += [path.stem for path in dead]
        except BaseException:
            self._close_files()
            raise

    def now(self) -> float:
        """Seconds since 1970, as they would be had the clock not been set since the run began."""
        return self.started_at + self._boot() - self._started_boot

    def say(self, report: bytes) -> None:
        """Replace this worker's report."""
        if len(report) > _PLACE_BYTES - _HEADER.size:
            raise OSError(f"a report of {len(report)} bytes has no room")
        with self._lock:
            self._written += 1
            place = (self._written & 1) * _PLACE_BYTES
            os.pwrite(self._file, report, place + _HEADER.size)
            os.pwrite(self._file, _HEADER.pack(self._written, len(report), crc32(report)), place)

    def keep(self, records: Iterable[tuple[str, bytes]]) -> None:
        """Put named records where every worker can `find` them; the last 512 of each worker stay while it lives."""
        with self._lock:
            for name, record in records:
                body = name.encode() + b"\n" + record
                if len(body) + _RECORD.size > _RECORD_BYTES:
                    continue
                place = (self._kept % _RECORDS) * _RECORD_BYTES
                os.pwrite(self._records, _RECORD.pack(len(body), crc32(body)) + body, place)
                self._kept += 1

    def find(self, name: str) -> bytes | None:
        """A record of this name that any worker keeps."""
        wanted = name.encode() + b"\n"
        for path in self._folder.glob("*.records"):
            with suppress(FileNotFoundError):
                data = path.read_bytes()
                at = data.find(wanted)
                while at >= 0:
                    record = _record(data, at - _RECORD.size)
                    if record is not None and at % _RECORD_BYTES == _RECORD.size:
                        return record[len(wanted) :]
                    at = data.find(wanted, at + 1)
        return None

    def hear(self) -> Reports:
        """Everybody's reports, each counted once, one's own included."""
        while True:
            with self._lock:
                folds, past, folded = self._folds(), self._fact("past"), self._folded()
                live = {
                    path.stem: report
                    for path in self._folder.glob("*.report")
                    if path.stem not in folded and (report := _read(path)) is not None
                }
                # Who was folded in meanwhile would be missing, or counted twice.
                if self._folds() == folds:
                    return Reports(past, live)

    def fold_dead(self) -> list[str]:
        """Merge the last reports of those who have died into the past; gives their names, to one caller only."""
        with self._lock:
            if not any(_is_dead(path) for path in self._others()):
                return []
            with self._transaction():
                dead = [path for path in self._others() if _is_dead(path)]
                self._fold(dead)
            _remove(dead)
            return [path.stem for path in dead]

    def take_turn(self, name: str, *, every_s: float) -> bool:
        """Whether it is this worker who does what one of them has to do every `every_s` seconds."""
        now = self.now()
        with self._lock:
            last = self._fact(f"turn-{name}")
            # The run before may have gone by a clock that was ahead.
            if last is not None and 0 <= now - last < every_s:
                return False
            with self._transaction():
                last = self._fact(f"turn-{name}")
                if last is not None and 0 <= now - last < every_s:
                    return False
                self._set_fact(f"turn-{name}", now)
                return True

    def note(self, body: bytes) -> None:
        """Keep `body` as what was true now.

        The last five minutes stay in full, what is older in steps of a minute, after an hour of five; a day in all.
        """
        now = self.now()
        with self._lock, self._transaction():
            self._database.execute("DELETE FROM moments WHERE at > ?", (now,))
            self._database.execute("INSERT OR REPLACE INTO moments VALUES (?, ?, ?)", (now, self.run, body))
            times = [at for (at,) in self._database.execute("SELECT at FROM moments ORDER BY at")]
            kept: list[float] = []
            dropped: list[float] = times[: -self._max_moments]
            for at in times[-self._max_moments :]:
                age = now - at
                step = 300.0 if age > 3660 else 60.0 if age > 310 else 0.0
                if age > 86_700 or (kept and at - kept[-1] < step):
                    dropped.append(at)
                else:
                    kept.append(at)
            self._database.executemany("DELETE FROM moments WHERE at = ?", [(at,) for at in dropped])

    def moments(self, since: float) -> list[Moment]:
        """What was noted at or after `since`, oldest first."""
        with self._lock:
            rows = self._database.execute("SELECT at, run, body FROM moments WHERE at >= ? ORDER BY at", (since,))
            return [Moment(*row) for row in rows]

    def last_before(self, at: float) -> Moment | None:
        """What was noted last in this run, at `at` or before."""
        with self._lock:
            row = self._database.execute(
                "SELECT at, run, body FROM moments WHERE run = ? AND at <= ? ORDER BY at DESC LIMIT 1", (self.run, at)
            ).fetchone()
            return Moment(*row) if row else None

    def close(self) -> None:
        """Leave: the last report goes into the past, the place is given up."""
        with self._lock:
            try:
                own = self._path(self.member)
                with self._transaction():
                    self._fold([own])
                _remove([own])
            finally:
                self._close_files()

    # What follows wants the lock held, `_enter` and `_fold` a transaction too.

    def _enter(self, founder: str) -> list[Path]:
        dead = [path for path in self._others() if _is_dead(path)]
        alive = len(self._others()) > len(dead)
        run = self._fact("run")
        if run is None or (self._fact("founder") != founder and not alive):
            run = uuid4().hex
            self._set_fact("run", run)
            self._set_fact("founder", founder)
            self._set_fact("started_at", self._clock())
            self._set_fact("started_boot", self._boot())
            self._set_fact("past", None)
            # They belong to the run before; if their files outlive this process they must not be merged later.
            self._database.executemany("INSERT OR IGNORE INTO folded VALUES (?)", [(path.stem,) for path in dead])
        else:
            self._fold(dead)
        self.run: str = run
        self.machine: str = self._fact("machine") or uuid4().hex
        self._set_fact("machine", self.machine)
        self.started_at: float = self._fact("started_at")
        self._started_boot: float = self._fact("started_boot")
        # Made and locked before the transaction ends: an unlocked file is a dead worker's.
        self._file = os.open(self._path(self.member), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        records = self._path(self.member).with_suffix(".records")
        self._records = os.open(records, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return dead

    def _fold(self, paths: Iterable[Path]) -> None:
        folded = self._folded()
        reports: list[bytes] = []
        for path in paths:
            if path.stem not in folded:
                if (report := _read(path)) is not None:
                    reports.append(report)
                self._database.execute("INSERT INTO folded VALUES (?)", (path.stem,))
        if reports:
            past = self._fact("past")
            self._set_fact("past", self._merge(reports if past is None else [past, *reports]))
        # A name is kept as long as its file may still be there.
        gone = [(member,) for member in folded if not self._path(member).exists()]
        self._database.executemany("DELETE FROM folded WHERE member = ?", gone)
        self._set_fact("folds", self._folds() + 1)

    def _close_files(self) -> None:
        for file in (self._file, self._records):
            if file >= 0:
                os.close(file)
        self._database.close()

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _others(self) -> list[Path]:
        return [path for path in self._folder.glob("*.report") if path.stem != self.member]

    def _path(self, member: str) -> Path:
        return self._folder / f"{member}.report"

    def _folded(self) -> set[str]:
        return {member for (member,) in self._database.execute("SELECT member FROM folded")}

    def _folds(self) -> int:
        return self._fact("folds") or 0

    def _fact(self, name: str) -> Any:
        row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _set_fact(self, name: str, value: str | float | bytes | None) -> None:
        self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def living(folder: Path) -> set[str]:
    """The names of those who have a place in `folder` and are alive, asked from outside; none where it is missing."""
    return {path.stem for path in folder.glob("*.report") if path.exists() and not _is_dead(path)}


def _open_database(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        # A power cut may leave it broken. It holds nothing but charts; the run that counted is over.
        for broken in path.parent.glob(f"{path.name}*"):
            broken.unlink(missing_ok=True)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        # What a killed process committed is there all the same; only a power cut may take the last seconds.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA journal_size_limit = 4194304")
        database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    os.chmod(path, 0o600)
    return database


def _is_dead(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def _read(path: Path) -> bytes | None:
    """The last whole report in a file, or `None` where none was written."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        headers: list[tuple[int, int, int, int]] = []
        for place in (0, _PLACE_BYTES):
            header = os.pread(file, _HEADER.size, place)
            if len(header) == _HEADER.size:
                headers.append((*_HEADER.unpack(header), place))
        for number, length, checksum, place in sorted(headers, reverse=True):
            report = os.pread(file, length, place + _HEADER.size)
            if number and crc32(report) == checksum:
                return report
    finally:
        os.close(file)
    return None


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.with_suffix(".records").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _record(data: bytes, at: int) -> bytes | None:
    if at < 0:
        return None
    length, checksum = _RECORD.unpack_from(data, at)
    body = data[at + _RECORD.size : at + _RECORD.size + length]
    return body if crc32(body) == checksum else None
