"""kill -9 of every process of a server that writes to SQLite: the file is whole, and what was acknowledged is in it."""

import asyncio
import random
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.figures import Figures
from tests.process import ServerProcess, free_port, running, serving
from tests.siege import Line

PASSWORD = "a password for tests"
PROMPT = "/api/v1/agent/prompt"
CLIENTS = 8


@dataclass(slots=True)
class Acknowledged:
    """What the clients were told is written, from all rounds; ids, or words of which a message is made."""

    conversations: set[str] = field(default_factory=set[str])
    titles: set[str] = field(default_factory=set[str])
    turns: set[str] = field(default_factory=set[str])
    kept_replies: set[str] = field(default_factory=set[str])

    @property
    def total(self) -> int:
        return len(self.conversations) + len(self.titles) + len(self.turns) + len(self.kept_replies)


def complaints(database: Path, acknowledged: Acknowledged) -> list[str]:
    """What is wrong with the file: of SQLite's own checks, and of what must be in it."""
    with closing(sqlite3.connect(database)) as connection:

        def column(query: str) -> list[str]:
            return [str(row[0]) for row in connection.execute(query)]

        try:
            found = [line for line in column("PRAGMA integrity_check") if line != "ok"]
            found += column("PRAGMA foreign_key_check")
            spoken = set("\n".join(column("SELECT message FROM conversation_entries")).replace('"', " ").split())
            replies = "\n".join(column("SELECT CAST(body AS TEXT) FROM kept_replies WHERE body IS NOT NULL"))
            missing = {
                *acknowledged.conversations.difference(column("SELECT id FROM conversations")),
                *acknowledged.titles.difference(column("SELECT title FROM conversations")),
                *acknowledged.turns.difference(spoken),
                *acknowledged.kept_replies.difference(replies.replace('"', "\n").split("\n")),
            }
        except sqlite3.DatabaseError as error:
            return [repr(error)]
    return found + [f"acknowledged and missing: {what}" for what in sorted(missing)]


async def write_for_ever(url: str, headers: dict[str, str], acknowledged: Acknowledged) -> None:
    """One client that never rests, whatever happens to the server."""
    while True:
        try:
            line = await Line.open(url)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        try:
            made = await line.ask("POST", "/api/v1/conversations", {}, **headers)
            assert made.status == 201, made.body
            conversation = made.json()["id"]
            acknowledged.conversations.add(conversation)
            title, word = f"title of {conversation}", f"turn-{conversation}"
            renamed = await line.ask("PATCH", f"/api/v1/conversations/{conversation}", {"title": title}, **headers)
            assert renamed.status == 200, renamed.body
            acknowledged.titles.add(title)
            turn = await line.ask("POST", PROMPT, {"message": f"{word} .", "conversation_id": conversation}, **headers)
            assert turn.status == 200, turn.body
            acknowledged.turns.add(word)
            once = {"Idempotency-Key": word, **headers}
            kept = await line.ask("POST", PROMPT, {"message": "once", "cache": {"mode": "off"}}, **once)
            assert kept.status == 200, kept.body
            acknowledged.kept_replies.add(kept.json()["id"])
        except (OSError, EOFError):
            continue
        finally:
            await line.aclose()


def kill_everything(server: ServerProcess) -> None:
    """SIGKILL to all of its processes; the supervisor stands still first, so that none is born meanwhile."""
    supervisor = psutil.Process(server.process.pid)
    supervisor.suspend()
    processes = [*supervisor.children(recursive=True), supervisor]
    for process in processes:
        process.kill()
    server.process.wait()
    psutil.wait_procs(processes, timeout=30)


async def crash(
    folder: Path,
    workers: int,
    headers: dict[str, str],
    acknowledged: Acknowledged,
    chance: random.Random,
    *,
    early: bool,
    turns: bool,
) -> None:
    """Start, write, and die: a moment after writes were acknowledged, or `early`, when that may not yet have been.

    The writes are those of conversations, or all kinds where `turns` are awaited too, which want the agents loaded.
    """
    port = free_port()
    command = [sys.executable, "-m", "app", "serve", "--port", str(port), "--workers", str(workers)]
    awaited = acknowledged.kept_replies if turns else acknowledged.conversations
    before = len(awaited)
    with running(command, folder, port=port, **environment()) as server:
        clients = [
            asyncio.create_task(write_for_ever(server.url, headers, acknowledged), name=f"client {number}")
            for number in range(CLIENTS)
        ]
        if not early:
            async with asyncio.timeout(60):
                while len(awaited) == before:
                    assert server.process.poll() is None, server.output()
                    await asyncio.sleep(0.005)
        # The moment is the parameter.
        await asyncio.sleep(chance.uniform(0.2, 1.5) if early else chance.uniform(0, 0.3))
        await asyncio.to_thread(kill_everything, server)
        for client in clients:
            client.cancel()
        ended = await asyncio.gather(*clients, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
        assert "Traceback" not in server.output()


def environment() -> dict[str, str]:
    return {"ADMIN_PASSWORD": PASSWORD, "RATE_LIMIT_PER_MINUTE": "0", "LOG_LEVEL": "warning"}


def first_start(folder: Path) -> dict[str, str]:
    """A new installation; gives the headers of a key."""
    with serving(folder, **environment()) as server:
        server.sign_in(password=PASSWORD)
        headers = {"Authorization": f"Bearer {server.make_key()}"}
        assert server.stop() == 0
    return headers


@pytest.mark.parametrize(
    "rounds", [10, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(3000)])], ids=["ten", "two hundred"]
)
async def test_kill_9_of_everything_loses_nothing_that_was_acknowledged(
    tmp_path: Path, rounds: int, figures: Figures
) -> None:
    database = tmp_path / "data" / "mnemosine.db"
    headers = await asyncio.to_thread(first_start, tmp_path)
    acknowledged = Acknowledged()
    figures.seed = seed = random.randrange(2**32)
    chance = random.Random(seed)
    for number in range(rounds):
        # A start of two costs several of one; the short form leaves them out.
        workers = 2 if number % 10 == 4 and rounds > 10 else 1
        early, turns = number % 5 == 3, number % 10 == 4
        await crash(tmp_path, workers, headers, acknowledged, chance, early=early, turns=turns)
        found = await asyncio.to_thread(complaints, database, acknowledged)
        assert found == [], f"round {number}, seed {seed}"
    figures.note(f"{rounds} times kill -9", "0 acknowledged writes lost", f"0 of {acknowledged.total}")
    assert acknowledged.kept_replies, "the control: every kind of write was under way"
    # The control of the check itself: it sees a row that is not there, and a page that is damaged.
    with closing(sqlite3.connect(database)) as connection:
        for table in ("conversations", "conversation_entries", "kept_replies"):
            connection.execute(f"DELETE FROM {table}")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert len(complaints(database, acknowledged)) == acknowledged.total
    content = bytearray(database.read_bytes())
    content[4096 * 2 : 4096 * 4] = bytes(4096 * 2)
    database.write_bytes(content)
    assert complaints(database, Acknowledged())
