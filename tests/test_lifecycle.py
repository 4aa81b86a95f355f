"""Opening and closing the whole application: what was opened is closed."""

import asyncio
import gc
import os
import threading
from pathlib import Path

import psutil
import pytest

from tests.application import open_application
from tests.leaks import assert_nothing_more, lasting_threads


# One lost at each opening shows after a few of them already.
@pytest.mark.parametrize("lives", [8, pytest.param(50, marks=pytest.mark.soak)])
async def test_openings_leak_no_file_task_thread_or_connection(tmp_path: Path, lives: int) -> None:
    process = psutil.Process(os.getpid())

    async def one_life() -> None:
        async with open_application(tmp_path) as application:
            assert (await application.prompt("Hello")).status_code == 200

    def held() -> tuple[int, int, int, int]:
        gc.collect()
        return (
            len(process.open_files()),
            len(process.net_connections()),
            len(lasting_threads()),
            len(asyncio.all_tasks()),
        )

    await one_life()
    before = held()
    for _ in range(lives):
        await one_life()
    await assert_nothing_more(held, before)


def test_a_lasting_thread_is_counted() -> None:
    before = len(lasting_threads())
    end = threading.Event()
    leak = threading.Thread(target=end.wait, name="leak")
    leak.start()
    during = len(lasting_threads())
    end.set()
    leak.join()
    assert during == before + 1


async def test_the_leak_test_would_notice_a_leak(tmp_path: Path) -> None:
    process = psutil.Process(os.getpid())
    before = len(process.open_files())
    leak = (tmp_path / "leak").open("w")
    after = len(process.open_files())
    leak.close()
    assert after == before + 1
