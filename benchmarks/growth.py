"""What grows with what: a hit among more entries, a prompt with more history. `python -m benchmarks.growth`.

In one process, through the front door of the whole application, as CPU time in alternating rounds, so that neither
sockets nor other programs are in it. Hits are of a thousand questions, among a thousand entries and among a million;
beside them stands the bare look-up of random ones of all entries, where the processor's caches help less and less.
A prompt continues a stored conversation of 10, 100 or 1,000 messages, all of which go to the provider.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

from benchmarks.fake_provider import FakeProvider
from benchmarks.visitor import opened

QUESTIONS = 1000
LENGTHS = (10, 100, 1000)


async def hits(entries: int, *, rounds: int, samples: int) -> dict[str, list[float]]:
    """Microseconds of CPU for a whole hit and for a bare look-up, in a small and in a large cache."""
    found: dict[str, list[float]] = {"hit few": [], "hit many": [], "look-up few": [], "look-up many": []}
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder) / "few") as few, opened(Path(folder) / "many") as many:
            for visitor in (few, many):
                for _ in range(2):
                    for number in range(QUESTIONS):
                        headers = await visitor.prompt(f"question {number}")
                assert headers[b"x-cache"] == b"HIT", headers
            keys = {"few": list(few.runtime.cache.memory._entries), "many": list(many.runtime.cache.memory._entries)}
            like = many.runtime.cache.memory._entries[keys["many"][0]]
            for number in range(entries - QUESTIONS):
                key, value = os.urandom(32), b"%d" % number * 32
                many.runtime.cache.memory.put(key, value, ttl_s=3600, generation=like.generation, tag=like.tag)
                keys["many"].append(key)
            chance = random.Random(7)
            for at in range(-1, rounds):
                for name, visitor in (("few", few), ("many", many)) if at % 2 else (("many", many), ("few", few)):
                    asked = [chance.randrange(QUESTIONS) for _ in range(samples)]
                    began = process_time()
                    for number in asked:
                        await visitor.prompt(f"question {number}")
                    whole = (process_time() - began) / samples * 1e6
                    wanted = chance.choices(keys[name], k=samples)
                    began = process_time()
                    for key in wanted:
                        assert visitor.runtime.cache.recall(key, "default") is not None
                    bare = (process_time() - began) / samples * 1e6
                    if at >= 0:
                        found[f"hit {name}"].append(whole)
                        found[f"look-up {name}"].append(bare)
    return found


async def histories(*, rounds: int, samples: int) -> dict[str, list[float]]:
    """Milliseconds of CPU for a prompt that continues a conversation, by the number of its messages so far."""
    found: dict[str, list[float]] = {str(length): [] for length in LENGTHS}
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder)) as visitor:
            whole: dict[int, str] = {}
            for length in LENGTHS:
                _, _, said = await visitor.post("/api/v1/conversations", b"{}")
                whole[length] = json.loads(said)["id"]
                for number in range(length // 2):
                    await visitor.prompt(f"question {number} of a conversation", whole[length])
            for at in range(-1, rounds):
                for length in LENGTHS if at % 2 else LENGTHS[::-1]:
                    # Each sample continues a copy, so that the length stays what it says.
                    forks: list[str] = []
                    for _ in range(samples):
                        status, _, said = await visitor.post(f"/api/v1/conversations/{whole[length]}/fork", b"{}")
                        assert status == 201, said
                        forks.append(json.loads(said)["id"])
                    await asyncio.sleep(0.3)  # what is still to be written is written
                    began = process_time()
                    for fork in forks:
                        await visitor.prompt("and now?", fork)
                    if at >= 0:
                        found[str(length)].append((process_time() - began) / samples * 1e3)
    return found


async def measure(*, entries: int, rounds: int) -> dict[str, Any]:
    async with FakeProvider(record=False) as fake:
        os.environ |= {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "any"}
        history_ms = await histories(rounds=rounds, samples=8)
        return {"entries": entries, "hit_us": await hits(entries, rounds=rounds, samples=2000), "prompt_ms": history_ms}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    json.dump(asyncio.run(measure(entries=options.entries, rounds=options.rounds)), sys.stdout)


if __name__ == "__main__":
    main()
