"""Answers from memory, counted by minute: too many for a row each."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0003"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_MONEY = sa.Numeric(18, 9).with_variant(sa.BigInteger(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "cached_answers",
        sa.Column("user_id", sa.String(32), nullable=False),
        sa.Column("agent", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("minute", _TIME, nullable=False),
        sa.Column("answers", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", _MONEY, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "agent", "model", "minute", name=op.f("pk_cached_answers")),
    )
    op.create_index(op.f("ix_cached_answers_minute"), "cached_answers", ["minute"])


def downgrade() -> None:
    op.drop_table("cached_answers")
