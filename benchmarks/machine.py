"""Where and on what a run was made; no names of machines, no paths."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.running import CORES, LOAD_CORES, SERVER_CORES
from benchmarks.subjects import ROOT


def facts() -> dict[str, Any]:
    """The machine, the commit and the moment."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": _git("rev-parse", "--short=12", "HEAD") or "unknown",
        "changed": bool(_git("status", "--porcelain", "--", "app", "benchmarks", ":!benchmarks/RESULTS*",
                             ":!benchmarks/results*")),
        "cpu": cpu,
        "cores": len(CORES) or os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "apart": SERVER_CORES != LOAD_CORES,
        "loadavg": os.getloadavg()[0],
    }  # fmt: skip


def _git(*command: str) -> str:
    try:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


class Steal:
    """What the host took away since this was made."""

    def __init__(self) -> None:
        self._began = psutil.cpu_times()

    def percent(self) -> float | None:
        if not sys.platform.startswith("linux"):
            return None
        end = psutil.cpu_times()
        return round(100 * (end.steal - self._began.steal) / max(1e-9, sum(end) - sum(self._began)), 2)
