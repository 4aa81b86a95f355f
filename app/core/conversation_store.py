"""A Pydantic AI `ConversationStore` on SQLite and PostgreSQL; of use to any program that has Pydantic AI agents."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, cast

from pydantic import TypeAdapter
from pydantic_ai import DeferredToolRequests, ModelMessagesTypeAdapter, RunUsage, UserError
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
)

from app.db.async_session import Database
from app.db.conversations import (
    ConversationRow,
    EntryRow,
    delete_conversation,
    get_conversation,
    get_entry,
    list_conversations,
    read_history,
    save_conversation,
)

_usage = TypeAdapter(RunUsage)
_deferred = TypeAdapter(DeferredToolRequests)


class DatabaseConversationStore(ConversationStore):
    """The conversations of one owner.

    `scope` is the owner, and stands in every query: what belongs to another one is not there, whatever a caller of
    the methods leaves out. Make one for each owner; it holds nothing but the database. A history is read in one
    query. A save is one short transaction, so that a conflict leaves nothing behind; deleting a conversation
    removes the messages that no fork shares. The database must have our schema (`app.db.schema.upgrade`).

    Raises, beside what the base class says, `DatabaseUnavailable`, and `UserError` for another scope than its own.
    """

    def __init__(self, database: Database, *, scope: str) -> None:
        self._database = database
        self._scope = scope

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """See the base class."""
        async with self._database.read() as session:
            row = await get_conversation(session, self._scope, conversation_id)
        return None if row is None else _record(row)

    async def read_records(self, *, scope: str | None = None, limit: int | None = None) -> Sequence[ConversationRecord]:
        """See the base class; another scope has none here."""
        if scope not in (None, self._scope):
            return []
        async with self._database.read() as session:
            page = await list_conversations(session, self._scope, limit=limit)
        return [_record(row) for row in page.rows]

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """See the base class."""
        if record.scope not in (None, self._scope):
            raise UserError(f"this store keeps the conversations of {self._scope!r}, not of {record.scope!r}")
        row = ConversationRow(
            owner=self._scope,
            id=record.conversation_id,
            head_id=record.head_id,
            revision=record.revision,
            usage=_usage.dump_json(record.usage).decode(),
            deferred=_written(record.deferred_tool_requests),
            forked_from=record.forked_from,
            forked_at=record.forked_at,
            branches=tuple(record.branches),
            created_at=record.updated_at,
            updated_at=record.updated_at,
        )
        rows = [_entry_row(entry) for entry in new_entries]
        async with self._database.write() as session:
            if not await save_conversation(session, row, rows, expected_revision=expected_revision):
                raise ConversationConflict(record.conversation_id)

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """See the base class; entries that no other conversation's history or branch reaches go with it."""
        async with self._database.write() as session:
            if not await delete_conversation(session, self._scope, conversation_id, revision=expected_revision):
                raise ConversationConflict(conversation_id)

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """See the base class."""
        async with self._database.read() as session:
            row = await get_entry(session, self._scope, entry_id)
        if row is None:
            raise LookupError(entry_id)
        return _entries([row])[0]

    async def read_history(self, head_id: str | None, *, limit: int | None = None) -> list[ConversationEntry]:
        """See the base class; raises `LookupError` where entries are gone."""
        async with self._database.read() as session:
            rows = await read_history(session, self._scope, head_id, limit=limit)
        begun = bool(rows) and rows[0].parent_id is None
        if head_id is not None and not begun and len(rows) != limit:
            raise LookupError(head_id)
        return _entries(rows)


def _record(row: ConversationRow) -> ConversationRecord:
    return ConversationRecord(
        conversation_id=row.id,
        head_id=row.head_id,
        usage=_usage.validate_json(row.usage),
        deferred_tool_requests=None if row.deferred is None else _deferred.validate_json(row.deferred),
        scope=row.owner,
        forked_from=row.forked_from,
        forked_at=row.forked_at,
        branches=list(row.branches),
        revision=row.revision,
        updated_at=row.updated_at,
    )


def _written(deferred: DeferredToolRequests | None) -> str | None:
    return None if deferred is None else _deferred.dump_json(deferred).decode()


def _entry_row(entry: ConversationEntry) -> EntryRow:
    # The adapter of the whole list alone writes bytes in base64; hence a list of one, without its brackets.
    message = ModelMessagesTypeAdapter.dump_json([entry.message])[1:-1].decode()
    return EntryRow(entry.id, entry.parent_id, entry.kind, message, datetime.now(UTC))


def _entries(rows: Sequence[EntryRow]) -> list[ConversationEntry]:
    messages = ModelMessagesTypeAdapter.validate_json("[" + ",".join(row.message for row in rows) + "]")
    return [
        ConversationEntry(
            id=row.id, parent_id=row.parent_id, message=message, kind=cast("Literal['message']", row.kind)
        )
        for row, message in zip(rows, messages, strict=True)
    ]
