"""Cached hits a second beside bare ASGI that does the same checks: `python -m benchmarks.cached_hit`.

One worker, 32 connections, authentication, limits and metrics on. Uses the environment that runs it for both, so it
needs no set-up of its own; alternating rounds, median with extremes, CPU beside the rate, since this machine is shared.
"""

import argparse
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.run import BARE, MNEMOSINE, Row, fake_provider, measure_row, serve, shown, spread


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cached_hit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    limited = {**MNEMOSINE.env, "RATE_LIMIT_PER_MINUTE": "1000000"}
    subjects = (replace(BARE, environment=None), replace(MNEMOSINE, environment=None, env=limited))
    with ExitStack() as stack:
        provider, _ = stack.enter_context(fake_provider())
        homes = {subject.name: stack.enter_context(tempfile.TemporaryDirectory()) for subject in subjects}
        up = [stack.enter_context(serve(subject, provider, homes[subject.name])) for subject in subjects]
        row = Row("cached", "cached", options.connections)
        rounds = [measure_row(row, up, rounds=1, seconds=options.seconds)["subjects"] for _ in range(options.rounds)]
    for name in (BARE.name, MNEMOSINE.name):
        rate = spread([one[name]["per_second"]["median"] for one in rounds])
        cpu = spread([1000 * one[name]["cpu_ms"]["median"] for one in rounds])
        errors = max(one[name]["errors"]["high"] for one in rounds)
        print(f"{name:<12} {shown(rate)} hits/s, {shown(cpu)} µs CPU, at most {errors:.0f} errors")
    for key, over, under in (("per_second", MNEMOSINE.name, BARE.name), ("cpu_ms", BARE.name, MNEMOSINE.name)):
        ratios = spread([one[over][key]["median"] / one[under][key]["median"] for one in rounds])
        print(f"ratio by {key:<10} {shown(ratios)}")


if __name__ == "__main__":
    main()
