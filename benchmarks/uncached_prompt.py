"""CPU per uncached prompt: Mnemosine beside a plain FastAPI application around `agent.run`, both as servers.

    python -m benchmarks.uncached_prompt --rounds 9 --prompts 300

Both are processes of one worker over HTTP, ask the same fake provider (a third process, which answers at once), and
take turns. What counts is the CPU time of the server's process over a batch of prompts that were never asked before.
Ours also checks a token, keeps the answer and records the run; the plain application does none of that.
Each kind of prompt is a pair: `talk` (no tool), `tool idle` (one tool, not called), `tool called` (two model requests).
Prints medians over the rounds, their spread, and the ratio of each round as JSON.
"""

import argparse
import asyncio
import json
import statistics

import aiohttp

from benchmarks.beside_plain import Server, fake_provider, open_both

KINDS = {
    "talk": ("talker", "prompt {}"),
    "tool idle": ("weatherman", "prompt {}"),
    "tool called": ("weatherman", 'call:weather {{"city": "place {}"}}'),
}


async def batch(session: aiohttp.ClientSession, server: Server, kind: str, *, mark: str, prompts: int) -> float:
    """CPU microseconds of the server for each of `prompts` prompts, eight at once. Every answer is looked at."""
    agent, text = KINDS[kind]
    numbers = iter(range(prompts))

    async def ask() -> None:
        for number in numbers:
            nonce = f"{mark}-{number}"
            body = {"message": text.format(nonce), "agent": agent}
            async with session.post(server.url, json=body, headers=server.headers) as reply:
                said = await reply.json()
            if reply.status != 200 or nonce not in said["response"] or said.get("cached"):
                raise RuntimeError(f"{server.url} answered {reply.status}: {said}")

    before = server.cpu_s()
    await asyncio.gather(*(ask() for _ in range(8)))
    return (server.cpu_s() - before) / prompts * 1e6


async def measure(base_url: str, *, rounds: int, prompts: int) -> dict[str, object]:
    async with (
        open_both(base_url, "talker", "weatherman") as (plain, ours),
        aiohttp.ClientSession() as session,
    ):
        plain.url += "/prompt"
        ours.url += "/api/v1/agent/prompt"
        servers = {"plain": plain, "mnemosine": ours}
        costs: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in servers} for kind in KINDS}
        for at in range(-1, rounds):
            for kind, cost in costs.items():
                for name in sorted(servers, reverse=at % 2 == 0):
                    used = await batch(session, servers[name], kind, mark=f"{name}{at}", prompts=prompts)
                    if at >= 0:  # the first round warms up
                        cost[name].append(used)
    return {kind: _told(cost["plain"], cost["mnemosine"]) for kind, cost in costs.items()}


def _told(plain: list[float], ours: list[float]) -> dict[str, object]:
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    told: dict[str, object] = {
        f"{name} cpu_us": {"median": round(statistics.median(all_)), "min": round(min(all_)), "max": round(max(all_))}
        for name, all_ in (("plain", plain), ("mnemosine", ours))
    }
    rounded = [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]
    return told | {"ratio": dict(zip(("median", "min", "max"), rounded, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=300)
    options = parser.parse_args()
    with fake_provider() as (base_url, _):
        found = asyncio.run(measure(base_url, rounds=options.rounds, prompts=options.prompts))
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
