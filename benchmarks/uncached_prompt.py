"""CPU per uncached prompt: direct tier and graph tier beside `agent.run` as it comes, in alternating rounds.

    python -m benchmarks.uncached_prompt --rounds 7 --prompts 150

The provider runs in a process of its own and answers at once, so the CPU time of this process is the cost of the
prompt. HTTP serving is left out on both sides; `pass-through` is the same POST over aiohttp with nothing around it.
Prints medians and the spread over rounds as JSON.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable
from time import process_time
from typing import Any

import aiohttp
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from app.core.direct_run import DirectAgent
from app.core.openai_chat import LeanChatModel, ProviderHttp
from app.core.provider_guard import GuardedModel, ProviderGuard

Ask = Callable[[str], Awaitable[object]]


def with_tool(model: Any) -> Agent[None, str]:
    agent = Agent(model, instructions="Be short.")

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"rain in {city}"

    return agent


async def measure(base_url: str, *, rounds: int, prompts: int) -> dict[str, Any]:
    http = ProviderHttp()
    provider = OpenAIProvider(base_url=base_url, api_key="any")
    theirs = OpenAIChatModel("gpt-4o-mini", provider=provider)
    ours = GuardedModel(
        LeanChatModel(OpenAIChatModel("gpt-4o-mini", provider=provider), http), ProviderGuard("fake"), "fake"
    )
    plain, direct = Agent(theirs, instructions="Be short."), DirectAgent(Agent(ours, instructions="Be short."), ours)
    their_tool, our_tool = with_tool(theirs), with_tool(ours)
    async with aiohttp.ClientSession() as session:

        async def pass_through(prompt: str) -> None:
            body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}]}
            async with session.post(f"{base_url}/chat/completions", json=body) as reply:
                await reply.read()

        variants: dict[str, Ask] = {
            "agent.run": plain.run,
            "direct": lambda prompt: direct.run(prompt, run_id=prompt),
            "agent.run, one tool": their_tool.run,
            "graph, one tool": our_tool.run,
            "pass-through": pass_through,
        }
        costs: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(-1, rounds):
            for name, ask in variants.items():
                started = process_time()
                for at in range(prompts):
                    await ask(f"prompt {number} {at} {name}")
                if number >= 0:  # the first round warms up
                    costs[name].append((process_time() - started) / prompts * 1e6)
    await http.aclose()
    await provider.client.close()
    median = {name: statistics.median(values) for name, values in costs.items()}
    return {
        "cpu_us": {
            name: {"median": round(median[name]), "min": round(min(values)), "max": round(max(values))}
            for name, values in costs.items()
        },
        "direct / agent.run": round(median["direct"] / median["agent.run"], 3),
        "graph / agent.run, one tool": round(median["graph, one tool"] / median["agent.run, one tool"], 3),
        "direct / pass-through": round(median["direct"] / median["pass-through"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=150)
    options = parser.parse_args()
    fake = subprocess.Popen([sys.executable, "-m", "benchmarks.fake_provider"], stdout=subprocess.PIPE, text=True)
    try:
        assert fake.stdout is not None
        base_url = json.loads(fake.stdout.readline())["base_url"]
        found = asyncio.run(measure(base_url, rounds=options.rounds, prompts=options.prompts))
        print(json.dumps(found, indent=2))
    finally:
        fake.terminate()
        fake.wait()


if __name__ == "__main__":
    main()
