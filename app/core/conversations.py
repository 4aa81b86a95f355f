"""The conversations of callers: kept, listed, forked, and continued by one prompt at a time."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any
from uuid import uuid4

from anyio import CancelScope
from pydantic_core import from_json, to_json

from app.core.run import Caller, OnBusy, Usage
from app.db.async_session import Database
from app.db.conversations import (
    ConversationRow,
    EntryRow,
    claim_conversation,
    delete_conversation,
    get_conversation,
    list_conversations,
    new_entry_id,
    read_history,
    release_conversation,
    rename_conversation,
    renew_claims,
    save_conversation,
    sweep_conversations,
)
from app.db.paging import Page
from app.errors import Conflict, DatabaseUnavailable, NotFound

__all__ = ["ConversationRow", "Conversations", "EntryRow", "Turn"]

_log = logging.getLogger(__name__)

MAX_MESSAGES = 10_000
"""Of one conversation; far beyond what models read, and little enough to be read at once."""
_ABSENT = "there is no such conversation"
_BUSY = "another prompt is being answered in this conversation; wait for it, or ask with on_busy=wait"
_SWEEP_BATCH = 20
_SWEEP_MESSAGES = 2000
"""In one transaction, or a single conversation: on SQLite nobody else writes meanwhile. 10,000 take 44 ms of CPU."""
_APPEND_TRIES = 3

Key = tuple[str, str]
"""Owner and id."""


class Conversations:
    """What callers may do with their conversations. Somebody else's is not there.

    A prompt takes its conversation by a lease in the conversation's own row: it reaches exactly as far as the
    conversation does (replicas on one database, with or without Redis), it is given back by the same transaction
    that stores the answer, and nothing but the database has to be there. A process has one lease for each
    conversation and renews all of them by one statement; inside the process prompts line up in the order in which
    they came. The lease of a process that died ends by itself after `lease_s`. Should a lease be lost all the same
    (a process that was stopped and goes on), the revision decides: nothing is overwritten and nothing interleaved.
    """

    def __init__(
        self,
        database: Database,
        *,
        wait_s: float = 110.0,
        lease_s: float = 15.0,
        retention_days: float = 0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._wait_s = wait_s
        self._lease_s = lease_s
        self._retention_days = retention_days
        self._jitter = jitter
        self._holder = uuid4().hex
        self._held: set[Key] = set()
        self._lines: dict[Key, _Line] = {}
        self._renewing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to renew leases; `aclose()` ends it."""
        self._renewing = asyncio.create_task(self._renew_for_ever(), name="conversation-leases")

    async def aclose(self) -> None:
        """Stop; every turn has ended by then."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    async def create(self, caller: Caller, *, title: str | None = None) -> ConversationRow:
        """A new, empty conversation; its id cannot be guessed."""
        row = _new_row(caller, title=title)
        async with self._database.write() as session:
            await save_conversation(session, row, expected_revision=None)
        return row

    async def ensure(self, caller: Caller, conversation_id: str) -> None:
        """Make the caller's conversation of this id if there is none yet; for ids that others give out."""
        async with self._database.read() as session:
            if await get_conversation(session, caller.id, conversation_id) is not None:
                return
        async with self._database.write() as session:
            # Where another request was faster it is there, which is all that is wanted.
            await save_conversation(
                session, replace(_new_row(caller, title=None), id=conversation_id), expected_revision=None
            )

    async def page(self, caller: Caller, *, limit: int, cursor: str | None) -> Page[ConversationRow]:
        """A page of the caller's conversations, the one used last first. Raises `InvalidFields` for a bad cursor."""
        async with self._database.read() as session:
            return await list_conversations(session, caller.id, limit=limit, cursor=cursor)

    async def show(self, caller: Caller, conversation_id: str) -> tuple[ConversationRow, list[EntryRow]]:
        """A conversation and what was said in it, oldest first. Raises `NotFound`."""
        async with self._database.read() as session:
            row = await get_conversation(session, caller.id, conversation_id)
            if row is None:
                raise NotFound(_ABSENT)
            return row, await read_history(session, caller.id, row.head_id)

    async def rename(self, caller: Caller, conversation_id: str, title: str | None) -> ConversationRow:
        """Give it another title. Raises `NotFound`."""
        async with self._database.write() as session:
            row = await rename_conversation(session, caller.id, conversation_id, title)
        if row is None:
            raise NotFound(_ABSENT)
        return row

    async def fork(
        self, caller: Caller, conversation_id: str, *, up_to: str | None = None, title: str | None = None
    ) -> ConversationRow:
        """A new conversation that begins as this one did, up to and with the message `up_to`.

        The messages are shared, not copied; from there on the two go their own ways. Raises `NotFound`.
        """
        row, history = await self.show(caller, conversation_id)
        head_id = row.head_id if up_to is None else up_to
        if head_id is not None and all(entry.id != head_id for entry in history):
            raise NotFound("there is no such message in this conversation")
        fork = _new_row(caller, title=title or row.title)
        fork = replace(fork, head_id=head_id, forked_from=row.id, forked_at=head_id)
        if head_id == row.head_id:
            fork = replace(fork, usage=row.usage)
        async with self._database.write() as session:
            if not await save_conversation(session, fork, expected_revision=None):
                raise NotFound(_ABSENT)
            stored = await get_conversation(session, caller.id, fork.id)
        assert stored is not None
        return stored

    async def delete(self, caller: Caller, conversation_id: str) -> None:
        """Remove it with every message that no fork shares. Raises `NotFound`.

        A prompt that is being answered in it fails when it wants to store its answer.
        """
        async with self._database.write() as session:
            if not await delete_conversation(session, caller.id, conversation_id):
                raise NotFound(_ABSENT)

    async def export(self, caller: Caller, conversation_id: str) -> bytes:
        """The whole conversation as JSON, its messages as Pydantic AI writes them. Raises `NotFound`."""
        row, history = await self.show(caller, conversation_id)
        about = {
            "format": "mnemosine-conversation-1",
            "id": row.id,
            "title": row.title,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
            "forked_from": row.forked_from,
            "forked_at": row.forked_at,
        }
        # What is stored is JSON already.
        messages = ",".join(entry.message for entry in history).encode()
        return to_json(about)[:-1] + b',"usage":' + row.usage.encode() + b',"messages":[' + messages + b"]}"

    @asynccontextmanager
    async def turn(self, caller: Caller, conversation_id: str, *, on_busy: OnBusy = "wait") -> AsyncGenerator["Turn"]:
        """Take the conversation for one prompt; other prompts wait, or are refused, until the block is left.

        No connection is held inside the block. Nothing is stored unless `Turn.append` is called.
        Raises `NotFound`, and `Conflict` where another prompt is under way and this one may not wait, or has waited
        for `wait_s` seconds.
        """
        key = (caller.id, conversation_id)
        deadline = asyncio.get_running_loop().time() + self._wait_s
        async with self._in_line(key, on_busy, deadline):
            try:
                await self._claim(key, on_busy, deadline)
            except (NotFound, Conflict):
                raise
            except BaseException:
                # Who was cut off while the lease was written may have it.
                await self._release(key)
                raise
            turn: Turn | None = None
            try:
                row, history = await self.show(caller, conversation_id)
                if row.length >= MAX_MESSAGES:
                    raise Conflict(f"the conversation has {row.length} messages and is full; begin a new one")
                turn = Turn(self._database, self._holder, row, history)
                yield turn
            finally:
                self._held.discard(key)
                if turn is None or not turn.stored:
                    await self._release(key)

    async def sweep(self) -> int:
        """Remove what nobody used for the time of retention; gives how many conversations that were."""
        if not self._retention_days:
            return 0
        since = datetime.now(UTC) - timedelta(days=self._retention_days)
        swept = 0
        while True:
            async with self._database.write() as session:
                batch = await sweep_conversations(
                    session, unused_since=since, limit=_SWEEP_BATCH, max_messages=_SWEEP_MESSAGES
                )
            swept += batch
            if batch == 0:
                break
            # Others want to write as well.
            await asyncio.sleep(0.02)
        if swept:
            _log.info("%d conversations were removed", swept)
        return swept

    @asynccontextmanager
    async def _in_line(self, key: Key, on_busy: OnBusy, deadline: float) -> AsyncGenerator[None]:
        """Wait for the prompts of this process that came before."""
        line = self._lines.setdefault(key, _Line())
        line.people += 1
        try:
            if on_busy == "reject" and line.people > 1:
                raise Conflict(_BUSY, retry_after_s=1)
            try:
                async with asyncio.timeout_at(deadline):
                    await line.turn.acquire()
            except TimeoutError as waited:
                raise Conflict(_BUSY, retry_after_s=1) from waited
            try:
                yield
            finally:
                line.turn.release()
        finally:
            line.people -= 1
            if not line.people:
                del self._lines[key]

    async def _claim(self, key: Key, on_busy: OnBusy, deadline: float) -> None:
        """Get the lease, waiting for other processes where that is wanted."""
        pause_s = 0.02
        while True:
            async with self._database.write() as session:
                # Claimed or not, whoever asks for what is not his hears that it is not there.
                claimed = await claim_conversation(session, *key, holder=self._holder, lease_s=self._lease_s)
                if not claimed and await get_conversation(session, *key) is None:
                    raise NotFound(_ABSENT)
            if claimed:
                self._held.add(key)
                return
            left_s = deadline - asyncio.get_running_loop().time()
            if on_busy == "reject" or left_s <= 0:
                raise Conflict(_BUSY, retry_after_s=1)
            await asyncio.sleep(min(left_s, pause_s * (0.5 + self._jitter())))
            pause_s = min(0.25, pause_s * 1.5)

    async def _release(self, key: Key) -> None:
        # Also when the caller has left. A lease that cannot be given back ends by itself, and is no obstacle to
        # this process.
        with CancelScope(shield=True):
            try:
                async with self._database.write() as session:
                    await release_conversation(session, *key, holder=self._holder)
            except DatabaseUnavailable:
                _log.warning("a conversation could not be given back; it is free in %g s", self._lease_s)

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            held = list(self._held)
            try:
                for start in range(0, len(held), 500):
                    async with self._database.write() as session:
                        await renew_claims(
                            session, held[start : start + 500], holder=self._holder, lease_s=self._lease_s
                        )
            except DatabaseUnavailable:
                continue  # there are two more chances before a lease ends


class Turn:
    """One prompt's hold on a conversation."""

    def __init__(self, database: Database, holder: str, row: ConversationRow, history: Sequence[EntryRow]) -> None:
        self.history = tuple(history)
        """What was said so far, oldest first."""
        self.stored = False
        self._database = database
        self._holder = holder
        self._row = row

    async def append(self, messages: Sequence[str], *, usage: Usage | None = None) -> None:
        """Store what was said in this turn, all of it or nothing; when this returns, it is durable.

        `messages` are JSON as Pydantic AI writes them, `usage` is added to that of the conversation. Ends the hold.
        Raises `Conflict` where something else was stored meanwhile, `NotFound` where the conversation was deleted,
        `DatabaseUnavailable` after a few tries.
        """
        now = datetime.now(UTC)
        entries: list[EntryRow] = []
        head_id = self._row.head_id
        for message in messages:
            entries.append(EntryRow(new_entry_id(), head_id, "message", message, now))
            head_id = entries[-1].id
        after = replace(
            self._row,
            head_id=head_id,
            revision=token_hex(16),
            usage=self._row.usage if usage is None else _added(self._row.usage, usage),
            deferred=None,
            updated_at=now,
        )
        for left in reversed(range(_APPEND_TRIES)):
            try:
                await self._store(after, entries)
            except DatabaseUnavailable:
                # The answer is there and was paid for: worth another try.
                if not left:
                    raise
                await asyncio.sleep(0.25)
            else:
                break
        self.stored = True

    async def _store(self, after: ConversationRow, entries: Sequence[EntryRow]) -> None:
        async with self._database.write() as session:
            if await save_conversation(
                session, after, entries, expected_revision=self._row.revision, holder=self._holder
            ):
                return
            there = await get_conversation(session, after.owner, after.id)
            if there is None:
                raise NotFound("the conversation was deleted while the prompt was being answered")
            # Equal after a commit that succeeded although its confirmation never arrived.
            if there.revision != after.revision:
                raise Conflict("the conversation went on while this prompt was being answered; ask again")


@dataclass(slots=True)
class _Line:
    """The prompts of this process for one conversation, in the order in which they came."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    people: int = 0


def _new_row(caller: Caller, *, title: str | None) -> ConversationRow:
    now = datetime.now(UTC)
    return ConversationRow(
        owner=caller.id, id=uuid4().hex, revision=token_hex(16), created_at=now, updated_at=now, title=title
    )


def _added(written: str, usage: Usage) -> str:
    """The sum, in Pydantic AI's words; what it counts beyond ours stays as it was."""
    total: dict[str, Any] = from_json(written)
    for name in ("requests", "input_tokens", "output_tokens"):
        total[name] = total.get(name, 0) + getattr(usage, name)
    return to_json(total).decode()
