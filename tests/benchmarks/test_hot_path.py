"""The hot paths do no more than they did: counts of what is executed, which no busy machine can disturb.

Where a change makes a path shorter, lower `MOST` to what the failing message or `python -m benchmarks.hot_path` says.
Where it must make one longer, raise it in the same commit, and say there what is had for it.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.process import ROOT

MOST = {
    "hit": {"calls": 146, "instructions": 1_840},
    "prompt": {"calls": 1_917, "instructions": 25_265},
    "stream": {"calls": 3_113, "instructions": 41_572},
}
"""By kind of request, as counted on CPython 3.11 with the versions of constraints.txt."""
MARGIN = 1.1

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or sys.implementation.name != "cpython",
    reason="the counts are those of CPython 3.11; others execute other instructions",
)


def counted(*options: str) -> dict[str, dict[str, int]]:
    command = [sys.executable, "-m", "benchmarks.hot_path", *options]
    env = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def too_long(found: dict[str, dict[str, int]], most: dict[str, dict[str, int]]) -> list[str]:
    return [
        f"a {kind} takes {found[kind][what]:,} {what}, at most {MARGIN * bound:,.0f} are allowed"
        for kind, bounds in most.items()
        for what, bound in bounds.items()
        if found[kind][what] > MARGIN * bound
    ]


def test_no_hot_path_has_become_longer_and_a_useless_layer_would_be_seen() -> None:
    now = counted()
    assert too_long(now, MOST) == []
    with_layer = too_long(counted("--layer", "--repeats", "2"), now)
    assert {line.split()[1] for line in with_layer} == set(MOST)
