"""A process that counts as a worker does, told what to do line by line: `record SEED N`, `read`, `leave`."""

import asyncio
import json
import random
import sys
from pathlib import Path

from app.core.metrics import Metrics
from app.core.picture import fold
from app.core.totals import Totals
from app.stores.scoreboard import Scoreboard


def latencies(seed: int, count: int) -> list[float]:
    """What a worker is told to have measured, in seconds."""
    source = random.Random(seed)
    return [source.lognormvariate(-2, 1) for _ in range(count)]


async def main(folder: Path) -> None:
    metrics = Metrics()
    scoreboard = Scoreboard(folder / "numbers", founder="tests", merge=fold)
    totals = Totals(metrics, scoreboard, parts={}, levels=dict, data_dir=folder)
    totals.start()
    print("ready", flush=True)
    while True:
        match (await asyncio.to_thread(sys.stdin.readline)).split():
            case ["record", seed, count]:
                for seconds in latencies(int(seed), int(count)):
                    metrics.record_request("POST /x", 200, seconds)
                print("recorded", flush=True)
            case ["read"]:
                picture = await totals.read()
                held = picture.total.distribution("response_seconds")
                percentiles = {q: held.percentile(float(q)) for q in ("0.5", "0.95", "0.99")}
                print(json.dumps({"workers": len(picture.workers), "count": held.count} | percentiles), flush=True)
            case _:
                break
    await totals.aclose()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
