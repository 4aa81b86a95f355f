"""Opening and closing the whole application: what was opened is closed."""

import asyncio
import gc
import os
import threading
from pathlib import Path

import psutil

from tests.application import open_application

ROUNDS = 50


async def test_fifty_openings_leak_no_file_task_thread_or_connection(tmp_path: Path) -> None:
    process = psutil.Process(os.getpid())

    async def one_life() -> None:
        async with open_application(tmp_path) as application:
            assert (await application.prompt("Hello")).status_code == 200

    def held() -> tuple[int, int, int, int]:
        gc.collect()
        return (
            len(process.open_files()),
            len(process.net_connections()),
            threading.active_count(),
            len(asyncio.all_tasks()),
        )

    await one_life()
    before = held()
    for _ in range(ROUNDS):
        await one_life()
    assert held() == before


async def test_the_leak_test_would_notice_a_leak(tmp_path: Path) -> None:
    process = psutil.Process(os.getpid())
    before = len(process.open_files())
    leak = (tmp_path / "leak").open("w")
    after = len(process.open_files())
    leak.close()
    assert after == before + 1
