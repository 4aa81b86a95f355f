"""What each step of docs/migrating.md gains: `python -m benchmarks.migration`.

The example of `before/`, the same after each step that can be taken alone (`before/steps.py`), and Mnemosine, in
alternating rounds; with medians and extremes. The environment of "before" is made where it is missing.
"""

import argparse
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.report import shown
from benchmarks.rows import HIT_ONE, ONE, Row, measure_row, spread
from benchmarks.running import fake_provider, homes, serve
from benchmarks.subjects import BEFORE, MNEMOSINE, make_environment

WAITING = Row("uncached, 300 ms model, 50 connections", "uncached", 50, latency_s=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.migration", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    make_environment(BEFORE)
    command = (*BEFORE.command[:-1], "steps:app")
    steps = [
        replace(BEFORE, name=f"after step {step}", command=command, env={"STEP": str(step), "PYTHONPATH": "."})
        for step in (2, 3, 4)
    ]
    subjects = (BEFORE, *steps, replace(MNEMOSINE, environment=None))
    with ExitStack() as stack:
        provider = stack.enter_context(fake_provider())
        folders = stack.enter_context(homes(subjects))
        up = [stack.enter_context(serve(one, provider, folders[one.name], for_load=True)) for one in subjects]
        rates: dict[str, float] = {}
        for row in (ONE, WAITING, HIT_ONE):
            result = measure_row(row, up, provider, rounds=options.rounds, seconds=options.seconds, rates=rates)
            print(row.name, *(f"{name} failed: {why}" for name, why in result["failed"].items()), sep="\n  ")
            for name, found in result["subjects"].items():
                rate, p50, cpu = (spread(found[key]) for key in ("per_second", "p50", "cpu_ms"))
                errors, others = sum(found["errors"]), spread(found["others_percent"])["median"]
                told = f"{shown(rate)} prompts/s, P50 {shown(p50)} ms, CPU {shown(cpu)} ms"
                print(f"  {name:<14} {told}, {errors:.0f} errors, others {others:.0f} %", flush=True)


if __name__ == "__main__":
    main()
