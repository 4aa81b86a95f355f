"""Memory and speed of the cache as it grows: `python -m benchmarks.cache_size`.

Stores a million distinct answers of 1 KB: first within a bound far below them, where the memory of the process must
stay within the bound and a fifth, then with room for all of them, where a hit must cost what it costs among a thousand.
"""

import argparse
import asyncio
import gc
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from app.core.cache_key import CacheKey, cache_key
from app.core.cache_service import CacheService
from app.core.flights import Tell
from app.core.run import Answer, Usage
from app.stores.local import LocalStore
from app.stores.memory import MemoryStore


def key(number: int) -> CacheKey:
    scope, prompt = f"user:{number % 1000}", f"{number}"
    return cache_key(scope=scope, agent="default", revision="1", models=["m"], instructions=None, prompt=prompt)


async def answer(tell: Tell | None) -> Answer:
    text = os.urandom(384).hex()  # with all that stands beside it, an entry of about 1 KB
    return Answer("0" * 32, text, "default", "m", Usage(10, 20, 1), None, 0.1, storable=True)


def rss() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


async def hit_us(cache: CacheService, entries: int, *, samples: int = 20_000, rounds: int = 5) -> float:
    """Median over rounds of the CPU of one look-up among random keys, in microseconds."""
    figures: list[float] = []
    chance = random.Random(7)
    for _ in range(rounds):
        digests = [key(chance.randrange(entries)).digest for _ in range(samples)]
        began = time.process_time()
        for digest in digests:
            assert cache.recall(digest, "default") is not None
        figures.append((time.process_time() - began) / samples * 1e6)
    return statistics.median(figures)


async def filled(folder: Path, *, max_bytes: int, entries: int) -> tuple[CacheService, LocalStore]:
    store = LocalStore(folder)
    cache = CacheService(MemoryStore(max_bytes=max_bytes), store, enabled=True, ttl_s=3600)
    for number in range(entries):
        await cache.get_or_run(key(number), answer, mode="use")
    return cache, store


async def measure(entries: int, bound: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = rss()
        cache, store = await filled(Path(folder), max_bytes=bound, entries=entries)
        grown = rss() - before
        numbers = cache.numbers()
        print(f"{entries:,} answers into {bound / 1e6:.0f} MB: {numbers['entries']:,} kept, ", end="")
        print(
            f"{numbers['evictions']:,} evicted, memory grew by {grown / 1e6:.0f} MB ({grown / bound:.2f} of the bound)"
        )
        await cache.aclose()
        await store.aclose()
        del cache
    with tempfile.TemporaryDirectory() as folder:
        cache, store = await filled(Path(folder), max_bytes=2**40, entries=1000)
        few = await hit_us(cache, 1000)
        for number in range(1000, entries):
            await cache.get_or_run(key(number), answer, mode="use")
        many = await hit_us(cache, entries)
        size = cache.memory.bytes / len(cache.memory)
        print(f"a hit among 1,000 entries {few:.2f} µs, among {entries:,} {many:.2f} µs ({size:.0f} bytes an entry)")
        await cache.aclose()
        await store.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache_size", description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--bound-mb", type=int, default=256)
    options = parser.parse_args()
    asyncio.run(measure(options.entries, options.bound_mb * 1_000_000))


if __name__ == "__main__":
    main()
