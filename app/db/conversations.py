"""Conversations as stored: an append-only log of messages, forks that share it, and who may write next.

Every query carries the owner, in the `WHERE` and not in a check afterwards. The few that serve all owners at once
(leases, retention) say so and give out no content.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from secrets import token_hex
from time import time_ns
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    and_,
    delete,
    insert,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.clock import from_now, now
from app.db.models import conversation_entries as entries
from app.db.models import conversations
from app.db.paging import Page, read_page
from app.db.upsert import insert_into


@dataclass(frozen=True, slots=True)
class ConversationRow:
    """One conversation. `usage` and `deferred` are JSON as Pydantic AI writes it."""

    owner: str
    id: str
    revision: str
    created_at: datetime
    updated_at: datetime
    title: str | None = None
    head_id: str | None = None
    length: int = 0
    """Messages in its history; `save_conversation` counts them."""
    usage: str = "{}"
    deferred: str | None = None
    forked_from: str | None = None
    forked_at: str | None = None
    branches: tuple[str, ...] = ()
    tree_id: str = field(default_factory=lambda: token_hex(16))


@dataclass(frozen=True, slots=True)
class EntryRow:
    """One message as stored; `message` is JSON."""

    id: str
    parent_id: str | None
    kind: str
    message: str
    created_at: datetime


_COLUMNS = tuple(conversations.c[name] for name in ConversationRow.__dataclass_fields__)
_ENTRY_COLUMNS = tuple(entries.c[name] for name in EntryRow.__dataclass_fields__)


def new_entry_id() -> str:
    """A fresh id of an entry: 32 hexadecimal digits that begin with the time, so that neighbours lie together."""
    return f"{time_ns() // 1_000_000:012x}{token_hex(10)}"


async def get_conversation(session: AsyncSession, owner: str, conversation_id: str) -> ConversationRow | None:
    """Find a conversation of this owner."""
    query = select(*_COLUMNS).where(*_is(owner, conversation_id))
    return _made((await session.execute(query)).one_or_none())


async def list_conversations(
    session: AsyncSession, owner: str, *, limit: int | None = None, cursor: str | None = None
) -> Page[ConversationRow]:
    """Give at most `limit` conversations, the one used last first, after the page that ended with `cursor`.

    One that is used between two pages moves to the front and may be missed by whoever reads on.
    Raises `InvalidFields` for a cursor that no page gave out.
    """
    query = select(*_COLUMNS).where(conversations.c.owner == owner)
    order = conversations.c.updated_at, conversations.c.id
    return await read_page(session, query, _required, order=order, newest_first=True, limit=limit, cursor=cursor)


async def read_history(
    session: AsyncSession, owner: str, head_id: str | None, *, limit: int | None = None
) -> list[EntryRow]:
    """Give the entries that lead to `head_id`, oldest first, or only the last `limit` of them.

    One query: it walks from parent to parent, by the primary key. Short of entries where `head_id` is gone.
    """
    if head_id is None or limit == 0:
        return []
    line = (
        select(entries.c.id, entries.c.parent_id, literal(1).label("step"))
        .where(entries.c.owner == owner, entries.c.id == head_id)
        .cte("line", recursive=True)
    )
    before = select(entries.c.id, entries.c.parent_id, line.c.step + 1).where(
        entries.c.owner == owner, entries.c.id == line.c.parent_id
    )
    if limit is not None:
        before = before.where(line.c.step < limit)
    line = line.union_all(before)
    query = select(*_ENTRY_COLUMNS).join(line, and_(entries.c.owner == owner, entries.c.id == line.c.id))
    return [EntryRow(*row) for row in (await session.execute(query.order_by(entries.c.position))).all()]


async def get_entry(session: AsyncSession, owner: str, entry_id: str) -> EntryRow | None:
    """Find one entry of this owner."""
    query = select(*_ENTRY_COLUMNS).where(entries.c.owner == owner, entries.c.id == entry_id)
    row = (await session.execute(query)).one_or_none()
    return None if row is None else EntryRow(*row)


async def save_conversation(
    session: AsyncSession,
    row: ConversationRow,
    new_entries: Sequence[EntryRow] = (),
    *,
    expected_revision: str | None,
    holder: str | None = None,
) -> bool:
    """Store a conversation and what was said anew, if it is still what it was; `False`, and nothing written, if not.

    `expected_revision` is that of the stored one, `None` for a new one. `new_entries` are in order. With `holder`
    the lease must be the holder's, and ends. Tree, length, title and creation time of a stored one are kept.
    The caller rolls back on `False`: an entry whose parent is gone is only noticed after the first write.
    """
    places = {entry.id for entry in new_entries}
    foot = new_entries[0].parent_id if new_entries else row.head_id
    begins, tree_id = 0, None
    if foot is not None:
        found = await _place_of(session, row.owner, foot, forks=expected_revision is None)
        if found is None:
            return False
        tree_id, position = found
        if expected_revision is None:
            row = replace(row, tree_id=tree_id)
        begins = position + 1
    if new_entries and row.head_id not in places:
        return False
    row = replace(row, length=begins + len(new_entries))
    if expected_revision is None:
        stored = await _insert(session, row)
    else:
        stored = await _replace(session, row, expected_revision, holder, tree_id)
    if stored is None:
        return False
    if new_entries:
        values = [
            {"owner": row.owner, "tree_id": stored, "position": begins + place, **asdict(entry)}
            for place, entry in enumerate(new_entries)
        ]
        await session.execute(insert(entries), values)
    return True


async def rename_conversation(
    session: AsyncSession, owner: str, conversation_id: str, title: str | None
) -> ConversationRow | None:
    """Change the title; `None` where there is no such conversation."""
    statement = update(conversations).where(*_is(owner, conversation_id)).values(title=title).returning(*_COLUMNS)
    return _made((await session.execute(statement)).one_or_none())


async def delete_conversation(
    session: AsyncSession, owner: str, conversation_id: str, *, revision: str | None = None
) -> bool:
    """Remove a conversation with every entry that no other one needs; tell whether there was one (at `revision`)."""
    here = _is(owner, conversation_id)
    if revision is not None:
        here = (*here, conversations.c.revision == revision)
    tree_id = (await session.execute(select(conversations.c.tree_id).where(*here))).scalar_one_or_none()
    if tree_id is None:
        return False
    # Against a fork that begins at an entry which is about to go, and against a deletion of the last other fork.
    await _lock_tree(session, tree_id, shared=False)
    if (await session.execute(delete(conversations).where(*here).returning(conversations.c.id))).one_or_none() is None:
        return False
    others = select(conversations.c.head_id, conversations.c.branches).where(
        conversations.c.owner == owner, conversations.c.tree_id == tree_id
    )
    ends: set[str] = set()
    for head_id, branches in (await session.execute(others)).all():
        ends.update([*([head_id] if head_id else []), *branches])
    unused = delete(entries).where(entries.c.owner == owner, entries.c.tree_id == tree_id)
    if ends:
        needed = (
            select(entries.c.id, entries.c.parent_id)
            .where(entries.c.owner == owner, entries.c.id.in_(ends))
            .cte("needed", recursive=True)
        )
        # UNION, not UNION ALL: what several lead to is walked once.
        needed = needed.union(
            select(entries.c.id, entries.c.parent_id).where(
                entries.c.owner == owner, entries.c.id == needed.c.parent_id
            )
        )
        unused = unused.where(entries.c.id.not_in(select(needed.c.id)))
    await session.execute(unused)
    return True


async def claim_conversation(
    session: AsyncSession, owner: str, conversation_id: str, *, holder: str, lease_s: float
) -> bool:
    """Take the conversation for one prompt, unless another process has it; also `False` where there is none."""
    free = or_(
        conversations.c.busy_holder.is_(None),
        conversations.c.busy_holder == holder,
        conversations.c.busy_until < now(session),
    )
    statement = update(conversations).where(*_is(owner, conversation_id), free)
    statement = statement.values(busy_holder=holder, busy_until=from_now(session, lease_s))
    return (await session.execute(statement.returning(conversations.c.id))).one_or_none() is not None


async def release_conversation(session: AsyncSession, owner: str, conversation_id: str, *, holder: str) -> None:
    """Give the conversation back, if `holder` still has it."""
    mine = (*_is(owner, conversation_id), conversations.c.busy_holder == holder)
    await session.execute(update(conversations).where(*mine).values(busy_holder=None, busy_until=None))


async def renew_claims(session: AsyncSession, keys: Sequence[tuple[str, str]], *, holder: str, lease_s: float) -> None:
    """Keep what `holder` has for another `lease_s` seconds; `keys` are pairs of owner and id."""
    held = tuple_(conversations.c.owner, conversations.c.id).in_(keys)
    statement = update(conversations).where(held, conversations.c.busy_holder == holder)
    await session.execute(statement.values(busy_until=from_now(session, lease_s)))


async def delete_conversations_of(session: AsyncSession, owner: str, *, max_rows: int) -> int:
    """Remove at most `max_rows` of an owner's conversations, or messages where none is left; gives how many those were.

    The conversations go first, so that a prompt that is about to store its answer fails, or its messages are found
    by a later call. Messages without their conversation are out of everybody's reach.
    """
    for table in (conversations, entries):
        some = select(table.c.id).where(table.c.owner == owner).limit(max_rows)
        statement = delete(table).where(table.c.owner == owner, table.c.id.in_(some)).returning(table.c.id)
        if gone := (await session.execute(statement)).all():
            return len(gone)
    return 0


async def sweep_conversations(session: AsyncSession, *, unused_since: datetime, limit: int, max_messages: int) -> int:
    """Remove at most `limit` conversations that nobody used since; gives how many.

    Those have at most `max_messages` together, or it is one. One that is being answered stays. Several processes may
    sweep at once and do not wait for each other.
    """
    idle = or_(conversations.c.busy_until.is_(None), conversations.c.busy_until < now(session))
    old = conversations.c.updated_at < unused_since
    query = select(conversations.c.owner, conversations.c.id, conversations.c.length).where(old, idle).limit(limit)
    swept = messages = 0
    for owner, conversation_id, length in (await session.execute(query.with_for_update(skip_locked=True))).all():
        messages += length
        if swept and messages > max_messages:
            break
        await delete_conversation(session, owner, conversation_id)
        swept += 1
    return swept


def _is(owner: str, conversation_id: str) -> tuple[ColumnElement[bool], ...]:
    return conversations.c.owner == owner, conversations.c.id == conversation_id


async def _place_of(session: AsyncSession, owner: str, entry_id: str, *, forks: bool) -> tuple[str, int] | None:
    """The tree and the position of an entry. For a fork, the entry stays until the transaction ends."""
    query = select(entries.c.tree_id, entries.c.position).where(entries.c.owner == owner, entries.c.id == entry_id)
    found = (await session.execute(query)).one_or_none()
    if found is not None and forks:
        await _lock_tree(session, found.tree_id, shared=True)
        found = (await session.execute(query)).one_or_none()
    return None if found is None else (found.tree_id, found.position)


async def _lock_tree(session: AsyncSession, tree_id: str, *, shared: bool) -> None:
    # SQLite has one writer anyway.
    if session.get_bind().dialect.name == "postgresql":
        lock = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        await session.execute(text(f"SELECT {lock}(hashtextextended(:tree, 0))"), {"tree": tree_id})


async def _insert(session: AsyncSession, row: ConversationRow) -> str | None:
    values = {**asdict(row), "branches": list(row.branches)}
    statement = (
        insert_into(conversations, dialect=session.get_bind().dialect.name)
        .values(values)
        .on_conflict_do_nothing()
        .returning(conversations.c.tree_id)
    )
    return (await session.execute(statement)).scalar_one_or_none()


async def _replace(
    session: AsyncSession, row: ConversationRow, expected_revision: str, holder: str | None, tree_id: str | None
) -> str | None:
    here = [*_is(row.owner, row.id), conversations.c.revision == expected_revision]
    values = asdict(row)
    for name in ("owner", "id", "title", "created_at", "tree_id"):
        del values[name]
    values["branches"] = list(row.branches)
    if tree_id is not None:
        here.append(conversations.c.tree_id == tree_id)
    if holder is not None:
        here.append(conversations.c.busy_holder == holder)
        values |= {"busy_holder": None, "busy_until": None}
    statement = update(conversations).where(*here).values(values).returning(conversations.c.tree_id)
    return (await session.execute(statement)).scalar_one_or_none()


def _made(row: Row[Any] | None) -> ConversationRow | None:
    return None if row is None else _required(row)


def _required(row: Row[Any]) -> ConversationRow:
    made = ConversationRow(*row)
    return replace(made, branches=tuple(made.branches))
