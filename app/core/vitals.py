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


def read_vitals(data_dir: Path) -> Vitals:
    """Read the machine and this process. Takes milliseconds: call it in a thread."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(data_dir))
    process = psutil.Process()
    return Vitals(
        cpu_percent=psutil.cpu_percent(),
        memory=Amount(memory.total, memory.total - memory.available, memory.percent),
        disk=Amount(disk.total, disk.used, disk.percent),
        rss_bytes=process.memory_info().rss,
        open_files=process.num_fds(),
    )


async def watch_loop(metrics: Metrics) -> None:
    """Measure ten times a second how late the loop is; runs until cancelled."""
    loop = asyncio.get_running_loop()
    lag = metrics.histogram("loop_lag_seconds")
    while True:
        due = loop.time() + _SAMPLE_S
        await asyncio.sleep(_SAMPLE_S)
        lag.record(loop.time() - due)
