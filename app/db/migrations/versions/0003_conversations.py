"""Conversations and what was said in them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("id", sa.String(255), nullable=False),
        sa.Column("tree_id", sa.String(64), nullable=False),
        sa.Column("title", sa.String(200), nullable=True),
        sa.Column("head_id", sa.String(64), nullable=True),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("revision", sa.String(64), nullable=False),
        sa.Column("usage", sa.Text(), nullable=False),
        sa.Column("deferred", sa.Text(), nullable=True),
        sa.Column("forked_from", sa.String(255), nullable=True),
        sa.Column("forked_at", sa.String(64), nullable=True),
        sa.Column("branches", sa.JSON(), nullable=False),
        sa.Column("busy_holder", sa.String(64), nullable=True),
        sa.Column("busy_until", _TIME, nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("owner", "id", name=op.f("pk_conversations")),
    )
    op.create_index(op.f("ix_conversations_owner_updated_at_id"), "conversations", ["owner", "updated_at", "id"])
    op.create_index(op.f("ix_conversations_owner_tree_id"), "conversations", ["owner", "tree_id"])
    op.create_index(op.f("ix_conversations_updated_at"), "conversations", ["updated_at"])
    op.create_table(
        "conversation_entries",
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tree_id", sa.String(64), nullable=False),
        sa.Column("parent_id", sa.String(64), nullable=True),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("owner", "id", name=op.f("pk_conversation_entries")),
    )
    op.create_index(op.f("ix_conversation_entries_owner_tree_id"), "conversation_entries", ["owner", "tree_id"])


def downgrade() -> None:
    op.drop_table("conversation_entries")
    op.drop_table("conversations")
