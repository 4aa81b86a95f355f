"""Cached hits a second beside bare ASGI that does the same checks: `python -m benchmarks.cached_hit`.

One worker, 32 connections, authentication, limits and metrics on. Uses the environment that runs it for both, so it
needs no set-up of its own; alternating rounds, median with extremes, CPU beside the rate, since this machine is shared.
"""

import argparse
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.report import shown
from benchmarks.rows import Row, measure_row, spread
from benchmarks.running import fake_provider, homes, serve
from benchmarks.subjects import BARE, MNEMOSINE


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cached_hit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    subjects = (replace(BARE, environment=None), replace(MNEMOSINE, environment=None))
    row = Row("cached", "cached", options.connections)
    with ExitStack() as stack:
        provider = stack.enter_context(fake_provider())
        folders = stack.enter_context(homes(subjects))
        up = [stack.enter_context(serve(one, provider, folders[one.name], for_load=True)) for one in subjects]
        found = measure_row(row, up, provider, rounds=options.rounds, seconds=options.seconds, rates={})["subjects"]
    for name in (BARE.name, MNEMOSINE.name):
        rate, cpu = spread(found[name]["per_second"]), spread([1000 * one for one in found[name]["cpu_ms"]])
        print(f"{name:<12} {shown(rate)} hits/s, {shown(cpu)} µs CPU, {sum(found[name]['errors']):.0f} errors")
    for key, over, under in (("per_second", MNEMOSINE.name, BARE.name), ("cpu_ms", BARE.name, MNEMOSINE.name)):
        ratios = spread([one / other for one, other in zip(found[over][key], found[under][key], strict=True)])
        print(f"ratio by {key:<10} {shown(ratios)}")


if __name__ == "__main__":
    main()
