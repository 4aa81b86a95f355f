"""What is special about the store of one machine: damage, reboots, clocks, fullness, and processes that are killed."""

import asyncio
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import StoreUnavailable
from app.stores.board import Board
from app.stores.local import LocalStore
from app.stores.shelf import Shelf
from app.stores.slots import Slots

ROOT = Path(__file__).parents[2]


class Machine:
    """The clocks of a machine that may be set and booted again."""

    def __init__(self) -> None:
        self.up_s = 500.0
        self.wall_s = 1_800_000_000.0
        self.boots = 1

    def pass_(self, seconds: float) -> None:
        self.up_s += seconds
        self.wall_s += seconds

    def reboot(self, *, after_s: float = 30.0) -> None:
        self.wall_s += after_s
        self.up_s = 5.0
        self.boots += 1

    def open_shelf(self, folder: Path, max_bytes: int = 2**24) -> Shelf:
        folder.mkdir(exist_ok=True)
        return Shelf(
            folder,
            Board(folder / "board"),
            max_bytes=max_bytes,
            clock=lambda: self.up_s,
            wall=lambda: self.wall_s,
            boot=lambda: b"boot %d" % self.boots,
        )


async def test_setting_the_wall_clock_moves_no_expiry(tmp_path: Path) -> None:
    machine = Machine()
    shelf = machine.open_shelf(tmp_path)
    await shelf.put(b"k", b"v", ttl_s=600)
    for jump_s in (3600, -7200, 315_360_000, -630_720_000):
        machine.wall_s += jump_s
        assert await shelf.get(b"k") == b"v"
    machine.pass_(599)
    assert await shelf.get(b"k") == b"v"
    machine.pass_(1.1)
    assert await shelf.get(b"k") is None
    await shelf.aclose()


@pytest.mark.parametrize(
    ("away_s", "jump_s", "lives", "left_s"),
    [
        (30, 0, True, 470),  # 100 of 600 s passed, then 30 s without power
        (600, 0, False, 0),
        (30, 315_360_000, False, 0),
        (30, -315_360_000, False, 0),  # from the future: nobody knows how old it is
    ],
)
async def test_over_a_reboot_an_entry_lives_for_what_it_had_left(
    tmp_path: Path, away_s: float, jump_s: float, lives: bool, left_s: float
) -> None:
    machine = Machine()
    shelf = machine.open_shelf(tmp_path)
    await shelf.put(b"k", b"v", ttl_s=600)
    machine.pass_(100)
    await shelf.aclose()
    machine.reboot(after_s=away_s)
    machine.wall_s += jump_s
    shelf = machine.open_shelf(tmp_path)
    assert (await shelf.get(b"k") is not None) == lives
    if lives:
        machine.pass_(left_s - 0.5)
        assert await shelf.get(b"k") == b"v"
        machine.pass_(1)
        assert await shelf.get(b"k") is None
    await shelf.aclose()


async def test_a_damaged_file_is_left_aside_and_begun_anew_for_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "shared"
    store, other = LocalStore(folder), LocalStore(folder)
    await store.put(b"k", b"v", ttl_s=60)
    await store.aclose()
    assert await other.get(b"k") == b"v"
    await other.aclose()
    for path in folder.glob("entries.*"):
        path.write_bytes(b"\x00garbage" * 5000)
    store, other = LocalStore(folder), LocalStore(folder)
    assert await store.get(b"k") is None
    await store.put(b"k", b"new", ttl_s=60)
    assert await other.get(b"k") == b"new"
    assert "left aside" in caplog.text
    await store.aclose()
    await other.aclose()


async def test_a_value_that_was_altered_on_the_disk_is_a_miss(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    store = LocalStore(folder)
    await store.put(b"k", b"the value of somebody", ttl_s=60)
    await store.aclose()
    path = next(folder.glob("entries.*.db"))
    path.write_bytes(path.read_bytes().replace(b"somebody", b"anybody!"))
    store = LocalStore(folder)
    assert await store.get(b"k") is None
    await store.aclose()


async def test_it_stays_within_its_bytes_and_what_came_first_goes_first(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "shared", max_bytes=1_000_000)
    for first in range(0, 3000, 100):
        await asyncio.gather(*(store.put(b"%d" % n, b"x" * 1000, ttl_s=60) for n in range(first, first + 100)))
    assert await store.get(b"0") is None
    assert await store.get(b"2999") == b"x" * 1000
    await store.aclose()
    assert next((tmp_path / "shared").glob("entries.*.db")).stat().st_size < 1_500_000


async def test_what_has_expired_is_removed(tmp_path: Path) -> None:
    machine = Machine()
    shelf = machine.open_shelf(tmp_path)
    await asyncio.gather(*(shelf.put(b"%d" % n, b"SECRETS" * 500, ttl_s=10) for n in range(50)))
    machine.pass_(60)
    await shelf.put(b"later", b"v", ttl_s=10)
    await shelf.aclose()
    connection = sqlite3.connect(tmp_path / "entries.0.db")
    assert connection.execute("SELECT count(*) FROM entries").fetchone() == (1,)
    connection.close()


async def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "shared")
    await store.put(b"k", b"v", ttl_s=60)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "shared").iterdir()} == {0o600}
    await store.aclose()


async def test_a_full_table_forgets_whoever_is_nearest_to_the_end(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", capacity=16)
    size = (tmp_path / "slots").stat().st_size
    for number in range(17):
        await slots.change(b"%d" % number, lambda *_, n=number: (100.0 + n, b"somebody"), deadline_s=1)  # type: ignore[misc]
    seen: list[float] = []

    def look(ahead_s: float, _: bytes) -> None:
        seen.append(ahead_s)

    for number in range(17):
        await slots.change(b"%d" % number, look, deadline_s=1)
    assert seen[0] == 0.0
    assert all(ahead_s > 100 for ahead_s in seen[1:])
    assert slots.early == 1
    assert (tmp_path / "slots").stat().st_size == size
    slots.close()


async def test_a_table_of_another_boot_bans_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    assert (await store.take(b"m", cost=5, limit=5, window_s=1e9)).allowed
    assert await store.claim(b"l", "ann", ttl_s=1e9)
    await store.aclose()
    store = LocalStore(tmp_path)
    assert not (await store.take(b"m", limit=5, window_s=1e9)).allowed
    await store.aclose()
    monkeypatch.setattr("app.stores.slots.boot_id", lambda: b"another boot 16b")
    store = LocalStore(tmp_path)
    assert (await store.take(b"m", cost=5, limit=5, window_s=1e9)).allowed
    assert await store.claim(b"l", "bob", ttl_s=1)
    await store.aclose()


HOLD_THE_LOCK = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


async def test_a_process_that_is_killed_with_the_lock_holds_nobody_up(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    holder = hold(tmp_path / "meters")
    with pytest.raises(StoreUnavailable):  # the control: while it lives, it does
        await store.take(b"m", limit=5, window_s=60)
    waiting = asyncio.create_task(store.take(b"m", limit=5, window_s=60))
    await asyncio.sleep(0)
    holder.send_signal(signal.SIGKILL)
    assert (await waiting).allowed
    holder.communicate()
    await store.aclose()


async def test_a_disk_that_cannot_be_written_is_no_error_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = LocalStore(tmp_path)
    path = tmp_path / "entries.0.db"
    path.mkdir()  # root may write anywhere, but not into a folder
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await store.get(b"k")
    assert store.numbers().state == "down"
    path.rmdir()
    await store.put(b"k", b"v", ttl_s=60)
    assert store.numbers().state == "up"
    assert len([record for record in caplog.records if "shared store" in record.message]) == 2
    await store.aclose()
