"""The tables of the first version: users and runs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Migrations do not import the models: they describe the past.
_TIME = sa.DateTime(timezone=True)
_MONEY = sa.Numeric(18, 9).with_variant(sa.BigInteger(), "sqlite")
_MILLISECONDS: sa.Double[float] = sa.Double()


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("username", sa.String(255), nullable=False),
        sa.Column("username_key", sa.String(1024), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("token_version", sa.Integer(), nullable=False),
        sa.Column("disabled_at", _TIME, nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.CheckConstraint("role IN ('admin', 'user')", name=op.f("ck_users_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("username_key", name=op.f("uq_users_username_key")),
    )
    op.create_index(op.f("ix_users_created_at_id"), "users", ["created_at", "id"])
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(32), nullable=False),
        sa.Column("agent", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("conversation_id", sa.String(64), nullable=True),
        sa.Column("worker", sa.String(255), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("cached", sa.Boolean(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", _MONEY, nullable=True),
        sa.Column("error_code", sa.String(64), nullable=True),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.Column("duration_ms", _MILLISECONDS, nullable=True),
        sa.Column("model_ms", _MILLISECONDS, nullable=True),
        sa.CheckConstraint(
            "status IN ('running', 'done', 'failed', 'cancelled', 'interrupted')", name=op.f("ck_runs_status")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_user_id_started_at_id"), "runs", ["user_id", "started_at", "id"])
    op.create_index(op.f("ix_runs_started_at_id"), "runs", ["started_at", "id"])
    running = sa.text("status = 'running'")
    op.create_index(op.f("ix_runs_running"), "runs", ["worker"], sqlite_where=running, postgresql_where=running)


def downgrade() -> None:
    op.drop_table("runs")
    op.drop_table("users")
