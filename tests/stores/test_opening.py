"""Workers that start together open the same new files, and none of them is turned away."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.stores.scoreboard import Scoreboard

WORKERS = 4
ROUNDS = 60


def test_workers_that_start_together_all_find_their_place(tmp_path: Path) -> None:
    with ThreadPoolExecutor(WORKERS) as pool:
        for number in range(ROUNDS):
            folder = tmp_path / str(number)
            start = threading.Barrier(WORKERS)

            def take_place(folder: Path = folder, start: threading.Barrier = start) -> Scoreboard:
                start.wait(timeout=30)
                return Scoreboard(folder, founder="one", merge=b"".join)

            for board in [place.result() for place in [pool.submit(take_place) for _ in range(WORKERS)]]:
                board.close()
