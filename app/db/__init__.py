"""Durable memory: SQLite or PostgreSQL, one way in. Everything that knows sqlalchemy or alembic lives here."""
