"""Fetching a pooled agent beside making one with its own client: `python -m benchmarks.pooled_agent`."""

import asyncio
import os
from statistics import quantiles
from time import perf_counter

from pydantic_ai import Agent

from app.core.agent_pool import AgentPool
from app.core.agents import AgentDefinition
from app.core.models import Models


async def main() -> None:
    os.environ.setdefault("OPENAI_API_KEY", "none")
    name = "openai-chat:gpt-5-mini"
    async with Models() as models:
        pool = AgentPool(models, capacity=10)
        definition = AgentDefinition(name="a", model=name)
        pooled, fresh = [], []
        for _ in range(20_000):
            began = perf_counter()
            async with pool.lease(definition):
                pooled.append(perf_counter() - began)
        for _ in range(50):
            began = perf_counter()
            agent = Agent(name)
            fresh.append(perf_counter() - began)
            async with agent:
                pass
        await pool.aclose()
    for label, taken in (("pooled", pooled[100:]), ("fresh, own client", fresh[5:])):
        cuts = quantiles(taken, n=100)
        print(f"{label:18} p50 {cuts[49] * 1e6:10.1f} µs   p95 {cuts[94] * 1e6:10.1f} µs   n={len(taken)}")


if __name__ == "__main__":
    asyncio.run(main())
