"""`DatabaseConversationStore`: what Pydantic AI says of a store, on both databases, and that owners stay apart."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from pydantic_ai import Agent, Conversation, DeferredToolRequests, RunUsage, ToolCallPart, UserError
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
    InMemoryConversationStore,
)
from pydantic_ai.messages import BinaryImage, ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.test import TestModel
from sqlalchemy import func, select

from app.core.conversation_store import DatabaseConversationStore
from app.db.async_session import Database, open_database
from app.db.models import conversation_entries


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    async with open_database(migrated_url, pool_size=5, max_overflow=0) as database:
        yield database
        assert database.pool_status().checked_out == 0


@pytest.fixture
def store(database: Database) -> DatabaseConversationStore:
    return DatabaseConversationStore(database, scope="anna")


def asked(text: str) -> ModelRequest:
    return ModelRequest(parts=[UserPromptPart(text)])


def said(text: str) -> ModelResponse:
    return ModelResponse(parts=[TextPart(text)])


async def entries_kept(database: Database) -> int:
    async with database.read() as session:
        return (await session.execute(select(func.count()).select_from(conversation_entries))).scalar_one()


async def test_agent_run_goes_on_with_a_stored_conversation(store: DatabaseConversationStore) -> None:
    agent = Agent(TestModel(custom_output_text="I hear you"))
    for turn in range(3):
        conversation = await store.load("chat") or Conversation(conversation_id="chat")
        assert len(conversation.messages) == 2 * turn
        await store.save(await agent.run(f"turn {turn}", conversation=conversation))
    stored = await store.load("chat", scope="anna")
    assert stored is not None
    assert [part.content for message in stored.messages for part in message.parts if isinstance(part, UserPromptPart)]
    assert stored.usage.requests == 3


async def test_a_conversation_comes_back_as_it_was_saved(store: DatabaseConversationStore) -> None:
    messages: list[ModelMessage] = [
        ModelRequest(
            parts=[UserPromptPart(["look \x00 \N{SNOWMAN}", BinaryImage(b"\x00\xff", media_type="image/png")])]
        ),
        ModelResponse(parts=[TextPart("a picture")], model_name="m", metadata={"a": [1]}),
    ]
    saved = Conversation(
        messages=messages,
        usage=RunUsage(requests=2, input_tokens=5, cost=Decimal("0.000000001"), details={"x": 1}),
        deferred_tool_requests=DeferredToolRequests(calls=[ToolCallPart("look", {"at": 1}, tool_call_id="c")]),
        conversation_id="chat",
    )
    entries = await store.save(saved)
    loaded = await store.load("chat")
    assert loaded == saved
    assert [entry.id for entry in entries] == [entry.id for entry in await store.load_entries("chat") or []]


async def test_every_owner_has_conversations_of_the_same_name(database: Database) -> None:
    anna, bert = (DatabaseConversationStore(database, scope=scope) for scope in ("anna", "bert"))
    (entry,) = await anna.save(Conversation(messages=[asked("secret")], conversation_id="chat"))
    assert await bert.load("chat") is None
    assert await bert.list_conversations() == []
    assert await bert.list_conversations(scope="anna") == []
    with pytest.raises(LookupError):
        await bert.read_entry(entry.id)
    with pytest.raises(LookupError):
        await bert.read_history(entry.id)
    with pytest.raises(UserError):
        await bert.fork("chat")
    with pytest.raises(UserError):
        await anna.fork("chat", scope="bert")
    with pytest.raises(ConversationConflict):  # a record that ends with an entry of somebody else
        await bert.write_record(ConversationRecord(conversation_id="mine", head_id=entry.id), expected_revision=None)
    await bert.save(Conversation(messages=[asked("other")], conversation_id="chat"))
    await bert.delete("chat")
    assert await anna.load("chat") is not None
    assert await entries_kept(database) == 1


async def test_a_save_of_an_old_copy_is_refused_and_writes_nothing(
    store: DatabaseConversationStore, database: Database
) -> None:
    await store.save(Conversation(messages=[asked("1")], conversation_id="chat"))
    one, two = await store.load("chat"), await store.load("chat")
    assert one is not None
    assert two is not None
    one.messages.append(said("one"))
    two.messages.append(said("two"))
    await store.save(one)
    with pytest.raises(ConversationConflict):
        await store.save(two)
    with pytest.raises(ConversationConflict):
        await store.save(Conversation(messages=[asked("new")], conversation_id="chat"))
    assert await entries_kept(database) == 2


async def test_of_many_saves_at_once_one_wins(store: DatabaseConversationStore) -> None:
    await store.save(Conversation(messages=[asked("1")], conversation_id="chat"))
    copies = [await store.load("chat") for _ in range(10)]

    async def save(copy: Conversation | None) -> bool:
        assert copy is not None
        copy.messages.append(said("x"))
        try:
            await store.save(copy)
        except ConversationConflict:
            return False
        return True

    assert sum(await asyncio.gather(*(save(copy) for copy in copies))) == 1
    assert len(await store.load_entries("chat") or []) == 2


async def test_deleting_leaves_what_forks_and_branches_need(
    store: DatabaseConversationStore, database: Database
) -> None:
    await store.save(Conversation(messages=[asked("1"), said("2"), asked("3"), said("4")], conversation_id="chat"))
    fork = await store.fork("chat", at=2, new_conversation_id="fork")
    fork.messages += [asked("fork")]
    await store.save(fork)
    loaded = await store.load("fork")
    assert loaded is not None
    branched = await store.branch("fork", at=1, expected_revision=loaded.revision)
    branched.messages.append(said("other"))
    await store.save(branched)
    assert await entries_kept(database) == 6
    await store.delete("chat")
    assert await entries_kept(database) == 4
    assert [message.parts[0] for message in (await store.load("fork") or Conversation()).messages][1:] == [
        TextPart("other")
    ]
    await store.delete("fork")
    assert await entries_kept(database) == 0


async def test_forks_and_deletions_at_once_never_lose_a_shared_message(store: DatabaseConversationStore) -> None:
    for round_ in range(5):
        source = f"source {round_}"
        await store.save(Conversation(messages=[asked("1"), said("2")], conversation_id=source))

        async def fork(name: str, source: str = source) -> str | None:
            try:
                return (await store.fork(source, new_conversation_id=name)).conversation_id
            except (UserError, LookupError):  # it was gone first; `ConversationConflict` is a `UserError`
                return None

        names = [f"{source} fork {n}" for n in range(4)]
        *made, _ = await asyncio.gather(*(fork(name) for name in names), store.delete(source))
        for name in made:
            if name is not None:
                assert len(await store.load_entries(name) or []) == 2


class _Script:
    """One sequence of calls, and what they gave; ids and times left out."""

    def __init__(self, store: ConversationStore) -> None:
        self.store = store
        self.log: list[Any] = []

    async def run(self) -> list[Any]:
        store = self.store
        conversation = Conversation(messages=[asked("1"), said("2"), asked("3")], conversation_id="a")
        self.note(await store.save(conversation, scope="anna"))
        self.note(await store.save(conversation))
        loaded = await store.load("a", limit=2)
        assert loaded is not None
        loaded.messages.append(said("4"))
        self.note(await store.save(loaded))
        rewritten = Conversation(
            messages=[conversation.messages[0], said("compacted")], conversation_id="a", revision=loaded.revision
        )
        self.note(await store.save(rewritten))
        (record,) = await store.list_conversations(scope="anna")
        back = await store.branch("a", from_entry=record.branches[0], expected_revision=rewritten.revision)
        self.log.append([type(message) for message in back.messages])
        for at in (0, 1, None):
            fork = await store.fork("a", at=at, source_scope="anna")
            self.log.append(len(fork.messages))
            self.note(await store.load_entries(fork.conversation_id) or [])
        mistakes: list[dict[str, Any]] = [{"at": 99}, {"at": 1, "from_entry": "x"}, {"from_entry": "x"}]
        for wrong in mistakes:
            with pytest.raises(UserError):
                await store.fork("a", **wrong)
        self.log.append(await store.load("b"))
        self.log.append(await store.load("a", scope="bert"))
        records = await store.list_conversations()
        self.log.append([(record.forked_from, record.scope) for record in records])
        self.log.append(len(await store.list_conversations(limit=2)))
        self.log.append([len(line) for line in [await store.load_entries("a", limit=n) or [] for n in (0, 1, 99)]])
        await store.delete("a", scope="bert")
        self.log.append(await store.load("a") is None)
        await store.delete("a", scope="anna")
        self.log.append(await store.load("a") is None)
        return self.log

    def note(self, entries: list[ConversationEntry]) -> None:
        self.log.append([entry.message.parts[0].part_kind for entry in entries])


async def test_it_does_what_the_store_in_memory_does(store: DatabaseConversationStore) -> None:
    assert await _Script(store).run() == await _Script(InMemoryConversationStore()).run()
