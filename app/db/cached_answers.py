"""How many answers came from memory, by user, agent, model and minute, and what they would have used."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import cached_answers
from app.db.upsert import insert_into


@dataclass(slots=True)
class CachedAnswers:
    """The answers of one minute. Tokens and dollars are those of the runs that were not made again."""

    user_id: str
    agent: str
    model: str
    minute: datetime
    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)


_COUNTS = ("answers", "input_tokens", "output_tokens", "cost_usd")


async def add_cached_answers(session: AsyncSession, rows: Sequence[CachedAnswers]) -> None:
    """Add the counts of `rows` to what is there; they hold each user, agent, model and minute at most once."""
    if not rows:
        return
    statement = insert_into(cached_answers, dialect=session.get_bind().dialect.name)
    statement = statement.on_conflict_do_update(
        index_elements=list(cached_answers.primary_key.columns),
        set_={name: cached_answers.c[name] + statement.excluded[name] for name in _COUNTS},
    )
    await session.execute(statement, [asdict(row) for row in rows])
