"""How the process and its machine are: CPU, memory, disk, open files, and how late the event loop comes."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.core.metrics import Metrics

_SAMPLE_S = 0.1


@dataclass(frozen=True, slots=True)
class Amount:
    """How much there is of something, and how much of it is taken; `percent` is 0 to 100."""

    total_bytes: int
    used_bytes: int
    percent: float


@dataclass(frozen=True, slots=True)
class Vitals:
    """One reading."""

    cpu_percent: float
    """Of the whole machine since the reading before; 0 at the first."""
    memory: Amount
    disk: Amount
    """Of the file system that holds the data directory."""
    rss_bytes: int
    open_files: int


class VitalsReader:
    """Reads the machine and this process; CPU is counted from one reading to the next."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        # `psutil.cpu_percent` remembers by thread, and readings come from whichever is free.
        self._busy_and_all = (0.0, 0.0)

    def read(self) -> Vitals:
        """One reading. Takes milliseconds: call it in a thread."""
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(self._data_dir))
        process = psutil.Process()
        return Vitals(
            cpu_percent=self._cpu_percent(),
            memory=Amount(memory.total, memory.total - memory.available, memory.percent),
            disk=Amount(disk.total, disk.used, disk.percent),
            rss_bytes=process.memory_info().rss,
            open_files=process.num_fds(),
        )

    def _cpu_percent(self) -> float:
        times = psutil.cpu_times()
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy = total - times.idle - getattr(times, "iowait", 0.0)
        (busy_before, total_before), self._busy_and_all = self._busy_and_all, (busy, total)
        if not total_before or total <= total_before:
            return 0.0
        return round(min(100.0, max(0.0, 100 * (busy - busy_before) / (total - total_before))), 1)


async def watch_loop(metrics: Metrics) -> None:
    """Measure ten times a second how late the loop is; runs until cancelled."""
    loop = asyncio.get_running_loop()
    lag = metrics.histogram("loop_lag_seconds")
    while True:
        due = loop.time() + _SAMPLE_S
        await asyncio.sleep(_SAMPLE_S)
        lag.record(loop.time() - due)
