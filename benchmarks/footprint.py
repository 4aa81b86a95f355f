"""What a server weighs before it has done anything useful: its start and its memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.rows import say
from benchmarks.running import Provider, Running, ask, serve, settle
from benchmarks.subjects import Subject

_WORKERS = (1, 4)
_TRIES = 4
_SEEN_WORKING_S = 0.1


def cold_starts(
    subjects: tuple[Subject, ...], provider: Provider, homes: Mapping[str, Path], *, starts: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds from the start of the process to the first answered prompt, in turn; and who does not start, with why.

    The first start, which makes bytecode, database and users, is not counted.
    """
    say("cold start")
    took: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for turn in range(starts + 1):
        for subject in subjects:
            if subject.name in failed:
                continue
            try:
                with serve(subject, provider, homes[subject.name]) as server:
                    if turn:
                        took.setdefault(subject.name, []).append(server.ready_s)
            except RuntimeError as error:
                failed[subject.name] = str(error)
    return took, failed


def memory(
    subjects: tuple[Subject, ...], provider: Provider, homes: Mapping[str, Path], *, starts: int
) -> list[dict[str, Any]]:
    """PSS over all processes of a server, before and after a load that reached every worker."""
    say("memory")
    found: list[dict[str, Any]] = []
    for workers in _WORKERS:
        for subject in subjects:
            before: list[float] = []
            after: list[float] = []
            for _ in range(starts):
                with serve(subject, provider, homes[subject.name], workers=workers) as server:
                    settle(server)
                    before.append(server.pss_bytes())
                    _load_every_worker(server, workers)
                    settle(server)
                    after.append(server.pss_bytes())
            found.append({"subject": subject.name, "workers": workers, "before": before, "after": after})
    return found


def _load_every_worker(server: Running, workers: int) -> None:
    """The kernel deals connections out as it likes, so new ones are opened until each worker has worked."""
    began = {process.pid: sum(process.cpu_times()[:2]) for process in server.processes()}
    for _ in range(_TRIES):
        ask(server, "uncached", connections=64, seconds=2.0)
        worked = [
            process.pid
            for process in server.processes()
            if sum(process.cpu_times()[:2]) - began.get(process.pid, 0.0) > _SEEN_WORKING_S
        ]
        if len(worked) >= workers:
            return
