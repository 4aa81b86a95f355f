"""The scoreboard: everybody is heard, the dead count once, and nothing grows."""

import itertools
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from app.stores.scoreboard import Scoreboard


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def add(reports: Iterable[bytes]) -> bytes:
    return str(sum(int(report) for report in reports)).encode()


def total(board: Scoreboard) -> int:
    heard = board.hear()
    return sum(int(report) for report in (*heard.live.values(), heard.past or b"0"))


def die(board: Scoreboard) -> None:
    """What the kernel does with a process that is killed: the lock goes, the file stays."""
    os.close(board._file)  # pyright: ignore[reportPrivateUsage]
    board._database.close()  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def enter(tmp_path: Path) -> Callable[..., Scoreboard]:
    def enter(
        founder: str = "parent", clock: Callable[[], float] = time.time, boot: Callable[[], float] | None = None
    ) -> Scoreboard:
        return Scoreboard(tmp_path / "numbers", founder=founder, merge=add, clock=clock, boot=boot or clock)

    return enter


def test_every_worker_hears_every_other(enter: Callable[..., Scoreboard]) -> None:
    boards = [enter() for _ in range(4)]
    for number, board in enumerate(boards):
        board.say(str(10**number).encode())
        board.say(str(2 * 10**number).encode())
    assert [total(board) for board in boards] == [2222] * 4


def test_the_dead_count_once_whoever_notices(enter: Callable[..., Scoreboard]) -> None:
    first, second, third = enter(), enter(), enter()
    for board in (first, second, third):
        board.say(b"7")
    die(first)
    assert total(second) == 21
    assert second.fold_dead() + third.fold_dead() == [first.member]
    assert second.fold_dead() == third.fold_dead() == []
    assert [total(second), total(third)] == [21, 21]
    assert len(second.hear().live) == 2


def test_who_leaves_is_counted_on(enter: Callable[..., Scoreboard]) -> None:
    first, second = enter(), enter()
    first.say(b"5")
    first.close()
    assert total(second) == 5


def test_a_death_between_merging_and_removing_counts_once(enter: Callable[..., Scoreboard], tmp_path: Path) -> None:
    first, second = enter(), enter()
    first.say(b"5")
    left_behind = (tmp_path / "numbers" / f"{first.member}.report").read_bytes()
    die(first)
    second.fold_dead()
    (tmp_path / "numbers" / f"{first.member}.report").write_bytes(left_behind)
    assert total(second) == 5
    second.fold_dead()
    assert total(second) == 5
    assert len(list((tmp_path / "numbers").glob("*.report"))) == 1


def test_200_restarts_leave_nothing_behind_and_lose_nothing(enter: Callable[..., Scoreboard], tmp_path: Path) -> None:
    lasting = enter()
    lasting.say(b"0")
    sizes: list[int] = []
    for number in range(200):
        board = enter(f"founder {number}")
        board.say(b"1")
        board.note(b"x" * 1000)
        die(board) if number % 2 else board.close()
        lasting.fold_dead()
        if number % 100 == 99:
            sizes.append(sum(path.stat().st_size for path in (tmp_path / "numbers").iterdir()))
    assert total(lasting) == 200
    assert len(list((tmp_path / "numbers").glob("*.report"))) == 1
    # Its records, the lock, and the database with its log and index.
    assert len(list((tmp_path / "numbers").iterdir())) <= 6
    assert lasting._folded() == set() or len(lasting._folded()) <= 1  # pyright: ignore[reportPrivateUsage]
    assert sizes[1] < 2 * sizes[0] + 4 * 1024 * 1024


def test_a_new_server_begins_anew(enter: Callable[..., Scoreboard]) -> None:
    first = enter("one")
    first.say(b"5")
    die(first)
    second = enter("two")
    assert total(second) == 0
    assert second.run != first.run
    second.fold_dead()
    assert total(second) == 0


def test_the_same_server_goes_on_when_all_its_workers_died_at_once(enter: Callable[..., Scoreboard]) -> None:
    first = enter("one")
    first.say(b"5")
    die(first)
    second = enter("one")
    assert total(second) == 5
    assert (second.run, second.started_at) == (first.run, first.started_at)


def test_a_server_without_a_common_founder_goes_on_while_one_worker_lives(enter: Callable[..., Scoreboard]) -> None:
    first, second = enter("one"), enter("two")
    first.say(b"5")
    die(first)
    third = enter("three")
    assert total(third) == 5
    assert {first.run, second.run, third.run} == {first.run}


def test_a_writer_that_dies_in_the_middle_leaves_its_last_whole_report(
    enter: Callable[..., Scoreboard], tmp_path: Path
) -> None:
    first, second = enter(), enter()
    first.say(b"5")
    first.say(b"6")
    first.say(b"7")
    path = tmp_path / "numbers" / f"{first.member}.report"
    with path.open("r+b") as file:  # the third report stands in the place of the first
        file.seek(4 * 1024 * 1024 + 16)
        file.write(b"?")
    assert total(second) == 6


def test_one_of_all_has_the_turn(enter: Callable[..., Scoreboard]) -> None:
    clock = Clock()
    boards = [enter(clock=clock) for _ in range(3)]
    for _ in range(5):
        assert sum(board.take_turn("note", every_s=5) for board in boards) == 1
        clock.now += 2
        assert not any(board.take_turn("note", every_s=5) for board in boards)
        clock.now += 3


def test_a_clock_that_is_set_moves_nothing(enter: Callable[..., Scoreboard]) -> None:
    wall, boot = Clock(), Clock()
    board = enter(clock=wall, boot=boot)
    assert board.take_turn("note", every_s=5)
    board.note(b"before")
    began = board.now()
    for shift in (3600, -7200, 1e9):
        wall.now += shift
        boot.now += 1
        assert not board.take_turn("note", every_s=5)
    assert board.now() == began + 3
    boot.now += 3
    assert board.take_turn("note", every_s=5)
    assert board.last_before(board.now() - 5) is not None
    colleague = enter(clock=wall, boot=boot)
    assert colleague.now() == board.now(), "who comes later goes by the same"


def test_a_run_that_follows_one_whose_clock_was_ahead_has_its_turns(enter: Callable[..., Scoreboard]) -> None:
    clock = Clock()
    board = enter("first", clock=clock)
    assert board.take_turn("note", every_s=5)
    board.close()
    clock.now -= 3600
    assert enter("second", clock=clock).take_turn("note", every_s=5)


def test_moments_thin_out_and_end(enter: Callable[..., Scoreboard]) -> None:
    clock = Clock()
    board = enter(clock=clock)
    for number in range(30 * 720):  # thirty hours
        if number < 28 * 720 and number % 12:
            clock.now += 5
            continue
        board.note(str(number).encode())
        clock.now += 5
    times = [moment.at for moment in board.moments(0)]
    ages = [clock.now - at for at in times]
    assert max(ages) <= 86_705
    assert len(times) < 450
    assert sum(age <= 310 for age in ages) >= 61
    steps = [b - a for a, b in itertools.pairwise(times)]
    assert max(steps) <= 420
    before = board.last_before(clock.now - 3600)
    assert before is not None
    assert 3600 <= clock.now - before.at <= 3600 + 360


def test_a_broken_history_is_begun_anew(enter: Callable[..., Scoreboard], tmp_path: Path) -> None:
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "history.db").write_bytes(b"not a database" * 1000)
    board = enter()
    board.say(b"5")
    assert total(board) == 5


def test_records_are_found_by_every_worker_while_their_own_lives(
    enter: Callable[..., Scoreboard], tmp_path: Path
) -> None:
    first, second = enter(), enter()
    first.keep((f"request-{number}", b"body %d" % number) for number in range(600))
    assert second.find("request-599") == b"body 599"
    assert second.find("request-88") == b"body 88"
    assert second.find("request-87") is None  # its place was taken
    assert second.find("request") is None
    first.keep([("too-long", b"x" * 5000)])
    assert second.find("too-long") is None
    size = sum(path.stat().st_size for path in (tmp_path / "numbers").glob("*.records"))
    assert size <= 512 * 4096
    first.close()
    assert second.find("request-599") is None
