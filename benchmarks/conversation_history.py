"""CPU time of one uncached prompt that continues a conversation, by the number of messages before it.

    python -m benchmarks.conversation_history

The offline model answers, so what is measured is ours: reading the history, and writing the turn.
"""

import asyncio
import statistics
import tempfile
from pathlib import Path
from time import process_time

from pydantic import SecretStr

from app.config import load_settings
from app.core.conversations import Conversations
from app.core.run import Caller, Question
from app.installation import prepare
from app.runtime import open_runtime

LENGTHS = (10, 100, 1000)
ROUNDS, PROMPTS = 5, 10
WORDS = "It rains, and it will rain tomorrow, as it did on every day of this week. " * 3
REQUEST = '{"parts":[{"content":"%s","timestamp":"2026-01-01T00:00:00Z","part_kind":"user-prompt"}],"kind":"request"}'
RESPONSE = '{"parts":[{"content":"%s","part_kind":"text"}],"model_name":"offline","kind":"response"}'
ADA = Caller("1", "ada", "user")


async def begun(conversations: Conversations, length: int) -> str:
    talk = (await conversations.create(ADA)).id
    async with conversations.turn(ADA, talk) as turn:
        await turn.append([REQUEST % WORDS, RESPONSE % WORDS] * (length // 2))
    return talk


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(env_file=None, data_dir=Path(folder) / "data", admin_password=SecretStr("not secret"))
        await prepare(settings)
        async with open_runtime(settings) as runtime:
            prompts = (await asyncio.shield(runtime.agent_room)).prompts
            talks = {length: await begun(runtime.conversations, length) for length in LENGTHS}
            spent: dict[int, list[float]] = {length: [] for length in LENGTHS}
            for _ in range(ROUNDS):
                for length, talk in talks.items():
                    forks = [(await runtime.conversations.fork(ADA, talk)).id for _ in range(PROMPTS)]
                    before = process_time()
                    for fork in forks:
                        await prompts.answer(ADA, Question("And now?", conversation_id=fork, cache_mode="off"))
                    spent[length].append((process_time() - before) / PROMPTS * 1000)
            for length, times in spent.items():
                print(
                    f"{length:5} messages: {statistics.median(times):6.2f} ms of CPU a prompt "
                    f"({min(times):.2f}-{max(times):.2f}), {statistics.median(times) / length:.4f} ms a message"
                )


if __name__ == "__main__":
    asyncio.run(main())
