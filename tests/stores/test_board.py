"""The counters that all workers of one machine share."""

import stat
import subprocess
import sys
from pathlib import Path

from app.stores.board import Board

BUMP_500_TIMES = """
import sys
from pathlib import Path
from app.stores.board import Board
with Board(Path(sys.argv[1])) as board:
    for _ in range(500):
        board.bump("cache")
"""


def test_four_processes_bump_at_once_and_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "board"
    with Board(path) as board:
        before = board.generation("cache")
        workers = [subprocess.Popen([sys.executable, "-c", BUMP_500_TIMES, str(path)]) for _ in range(4)]
        assert [worker.wait(30) for worker in workers] == [0] * 4
        assert board.generation("cache") == before + 2000
        assert board.generation("credentials") == 0


def test_a_generation_survives_a_restart_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "board"
    with Board(path) as board:
        board.bump("agents")
    with Board(path) as board:
        assert board.generation("agents") == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
