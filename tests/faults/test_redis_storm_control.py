"""The positive control of the cancellation storm: a driver that is known to mix up answers must fail it."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault_proxy import FaultProxy

OLD = "redis==4.5.1"  # before the fix of CVE-2023-28858 and 28859
NEW = "redis==8.1.0"
STORM = """
import asyncio, json, random, sys
from redis.asyncio import BlockingConnectionPool, Redis

async def main(port, database, cancels):
    pool = BlockingConnectionPool(host="127.0.0.1", port=port, db=database, max_connections=10, timeout=5)
    redis, choice = Redis(connection_pool=pool), random.Random(20261125)
    counts = {"told": 0, "cancelled": 0, "failed": 0, "foreign": 0}

    async def work():
        number = 0
        while counts["cancelled"] < cancels:
            number += 1
            key = "key %d" % choice.randrange(200)
            asking = asyncio.create_task(redis.get(key))
            if number % 2:
                await asyncio.sleep(choice.random() * 0.025)
                asking.cancel()
            try:
                value = await asking
            except asyncio.CancelledError:
                counts["cancelled"] += 1
            except Exception:
                counts["failed"] += 1
            else:
                counts["told"] += 1
                counts["foreign"] += value != ("nonce of " + key).encode()

    for number in range(200):
        await redis.set("key %d" % number, "nonce of key %d" % number, ex=600)
    await asyncio.gather(*(work() for _ in range(10)))
    print(json.dumps(counts))

asyncio.run(main(*map(int, sys.argv[1:])))
"""


@pytest.mark.soak
@pytest.mark.parametrize(("version", "mixes_up"), [(OLD, True), (NEW, False)])
async def test_the_storm_finds_the_driver_that_mixes_up_answers(
    version: str, mixes_up: bool, redis_url: str, tmp_path: Path
) -> None:
    python = await asyncio.to_thread(environment_with, version, tmp_path / "venv")
    host, port = redis_url.split("/")[2].split(":")
    async with FaultProxy(host, int(port), mode="latency:10") as proxy:
        process = await asyncio.create_subprocess_exec(
            python, "-c", STORM, str(proxy.port), redis_url.rpartition("/")[2], "1000", stdout=subprocess.PIPE
        )
        try:
            told, _ = await asyncio.wait_for(process.communicate(), 90)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    counts: dict[str, int] = json.loads(told)
    print(f"{version}: {counts}")
    assert counts["told"] + counts["cancelled"] > 1000
    assert (counts["foreign"] > 0) == mixes_up


def environment_with(version: str, folder: Path) -> Path:
    """The interpreter of a throw-away environment; skips the test where the package cannot be had."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", version],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        pytest.skip(f"{version} cannot be installed here: {done.stderr.strip()[-200:]}")
    return python
