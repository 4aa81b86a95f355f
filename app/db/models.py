"""The tables, and the column types that mean the same on SQLite and PostgreSQL.

A change here needs a migration in `migrations/versions`; a test compares the two.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

Role = Literal["admin", "user"]
RunStatus = Literal["running", "done", "failed", "cancelled", "interrupted"]


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC. SQLite keeps it as text that sorts by time; a naive one is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC; SQLite gets it without the offset that it cannot keep."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time needs a zone to be stored, got {value!r}")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give it back aware."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Money(TypeDecorator[Decimal]):
    """A sum of dollars, exact to nine decimals, up to 999,999,999.

    SQLite has no decimals, so there it is a whole number of billionths: sums and comparisons in SQL stay exact.
    """

    impl = Numeric(18, 9)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose a 64-bit integer on SQLite, a decimal elsewhere."""
        return dialect.type_descriptor(BigInteger() if dialect.name == "sqlite" else Numeric(18, 9))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        """Round half to even at the ninth decimal, on both backends alike."""
        if value is None:
            return None
        rounded = value.quantize(_BILLIONTH)
        return int(rounded.scaleb(9)) if dialect.name == "sqlite" else rounded

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """Give dollars back, with nine decimals."""
        if value is None:
            return None
        return Decimal(value).scaleb(-9).quantize(_BILLIONTH) if dialect.name == "sqlite" else Decimal(value)


_BILLIONTH = Decimal("0.000000001")


class Base(DeclarativeBase):
    """All tables. Constraints are named, so that a migration can find them again."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class User(Base):
    """Somebody who may sign in."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("role IN ('admin', 'user')", name="role"),
        Index(None, "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    username: Mapped[str] = mapped_column(String(255))
    username_key: Mapped[str] = mapped_column(String(1024), unique=True)
    """`username` folded so that names which differ only in case or width are one name."""
    password_hash: Mapped[str] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(16))
    token_version: Mapped[int]
    """Part of every token; raising it ends all of them."""
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ApiKey(Base):
    """A credential of a user for programs. Of the key itself only its SHA-256 is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (Index(None, "user_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    """Part of the key, so that it can be looked up; no secret."""
    user_id: Mapped[str] = mapped_column(String(32), ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the whole key. 256 random bits need no slow hash."""
    agents: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    chat_ui: Mapped[bool]
    """Whether chat headers of a user interface that uses this key are believed."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class KeptReply(Base):
    """A request that came with an `Idempotency-Key`: who answers it, and then what the answer was."""

    __tablename__ = "kept_replies"
    __table_args__ = (Index(None, "user_id"), Index(None, "expires_at"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of caller, route and key."""
    user_id: Mapped[str] = mapped_column(String(32), ForeignKey("users.id", ondelete="CASCADE"))
    request_digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the body: another body under the same key is a mistake of the client."""
    owner: Mapped[str] = mapped_column(String(32))
    """The one run that answers it."""
    owned_until: Mapped[datetime] = mapped_column(UtcDateTime)
    """Renewed while the run goes on; after it the owner counts as dead."""
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    status: Mapped[int | None]
    """Of the answer; `NULL` while there is none."""
    headers: Mapped[list[list[str]] | None] = mapped_column(JSON(none_as_null=True))
    body: Mapped[bytes | None] = mapped_column(LargeBinary)


class Run(Base):
    """What one prompt was, cost and came to; not what was said.

    `user_id` is no foreign key: a run outlives its user, since the costs were real, and one deleted user must not
    make the insert of a whole group fail.
    """

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint("status IN ('running', 'done', 'failed', 'cancelled', 'interrupted')", name="status"),
        Index(None, "user_id", "started_at", "id"),
        Index(None, "started_at", "id"),
        # The few that are running, for the search after those whose worker died: the migration makes it a partial one.
        # Said here, that would import PostgreSQL's dialect into every process (20 ms of CPU, 2 MB).
        Index("ix_runs_running", "worker"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(32))
    agent: Mapped[str] = mapped_column(String(255))
    model: Mapped[str] = mapped_column(String(255))
    conversation_id: Mapped[str | None] = mapped_column(String(64))
    worker: Mapped[str] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(16))
    cached: Mapped[bool]
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    requests: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[Decimal | None] = mapped_column(Money)
    error_code: Mapped[str | None] = mapped_column(String(64))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    duration_ms: Mapped[float | None] = mapped_column(Double)
    model_ms: Mapped[float | None] = mapped_column(Double)


class Worker(Base):
    """A process that answers prompts, as long as it says so."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    """As in `runs.worker`."""
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """By the database's clock; whoever is silent for long is dead."""


class Conversation(Base):
    """Where a conversation ends, and what belongs to the whole of it.

    The owner is part of the key, so that no query can do without. It is no foreign key: the conversation store is
    usable without our users, and a user's conversations are buried with the user (`db/conversations.py`).
    """

    __tablename__ = "conversations"
    __table_args__ = (
        Index(None, "owner", "updated_at", "id"),
        Index(None, "owner", "tree_id"),
        Index(None, "updated_at"),
    )

    owner: Mapped[str] = mapped_column(String(255), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    tree_id: Mapped[str] = mapped_column(String(64))
    """Shared by a conversation and its forks, which share their first messages."""
    title: Mapped[str | None] = mapped_column(String(200))
    head_id: Mapped[str | None] = mapped_column(String(64))
    """The newest entry."""
    length: Mapped[int]
    """How many messages lead to the head."""
    revision: Mapped[str] = mapped_column(String(64))
    """Another one after every change of what was said."""
    usage: Mapped[str] = mapped_column(Text)
    deferred: Mapped[str | None] = mapped_column(Text)
    """The tool calls that the conversation waits for, as Pydantic AI writes them."""
    forked_from: Mapped[str | None] = mapped_column(String(255))
    forked_at: Mapped[str | None] = mapped_column(String(64))
    branches: Mapped[list[str]] = mapped_column(JSON)
    """The last entries of the branches that were left, oldest first."""
    busy_holder: Mapped[str | None] = mapped_column(String(64))
    """The process that answers a prompt in it."""
    busy_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ConversationEntry(Base):
    """One message of a conversation, written once. Forks and branches point at entries instead of copying them."""

    __tablename__ = "conversation_entries"
    __table_args__ = (Index(None, "owner", "tree_id"),)

    owner: Mapped[str] = mapped_column(String(255), primary_key=True)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tree_id: Mapped[str] = mapped_column(String(64))
    parent_id: Mapped[str | None] = mapped_column(String(64))
    position: Mapped[int]
    """How many entries lead to this one."""
    kind: Mapped[str] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(Text)
    """JSON, as Pydantic AI writes it; never changed and seldom parsed."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class CachedAnswer(Base):
    """Answers from memory in one minute; there are too many of them for a row each."""

    __tablename__ = "cached_answers"
    __table_args__ = (Index(None, "minute"),)

    user_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    agent: Mapped[str] = mapped_column(String(255), primary_key=True)
    model: Mapped[str] = mapped_column(String(255), primary_key=True)
    minute: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    answers: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[Decimal] = mapped_column(Money)


class Response(Base):
    """An answer of the Responses API that its owner may ask for again, and go on from."""

    __tablename__ = "responses"
    __table_args__ = (Index(None, "user_id", "created_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(32), ForeignKey("users.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    body: Mapped[str] = mapped_column(Text)
    """The response object, as JSON."""
    talk: Mapped[str] = mapped_column(Text)
    """All that was said up to there, as JSON."""


class Budget(Base):
    """What a user or an API key may use in a day or a month, and what it has used in the present one."""

    __tablename__ = "budgets"
    __table_args__ = (
        CheckConstraint("period IN ('day', 'month')", name="period"),
        CheckConstraint("unit IN ('usd', 'tokens')", name="unit"),
        CheckConstraint("amount >= 0", name="amount"),
    )

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    """`user:` or `key:` and an id. No foreign key, since it is one of two; whoever deletes the owner deletes these."""
    period: Mapped[str] = mapped_column(String(8), primary_key=True)
    unit: Mapped[str] = mapped_column(String(8))
    amount: Mapped[int] = mapped_column(BigInteger)
    """Tokens, or billionths of a dollar: whole numbers add up exactly on both backends."""
    spent: Mapped[int] = mapped_column(BigInteger)
    """In the period that ends at `renews_at`; an older one counts as 0."""
    renews_at: Mapped[datetime] = mapped_column(UtcDateTime)


class BudgetReservation(Base):
    """What a run that is under way may come to, for one owner of budgets. One that has expired does not count."""

    __tablename__ = "budget_reservations"
    __table_args__ = (Index(None, "owner", "expires_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)
    nanodollars: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


# The query modules work on tables: rows become frozen dataclasses, and no ORM object leaves the room.
users = cast("Table", User.__table__)
api_keys = cast("Table", ApiKey.__table__)
kept_replies = cast("Table", KeptReply.__table__)
runs = cast("Table", Run.__table__)
workers = cast("Table", Worker.__table__)
conversations = cast("Table", Conversation.__table__)
conversation_entries = cast("Table", ConversationEntry.__table__)
cached_answers = cast("Table", CachedAnswer.__table__)
responses = cast("Table", Response.__table__)
budgets = cast("Table", Budget.__table__)
budget_reservations = cast("Table", BudgetReservation.__table__)
