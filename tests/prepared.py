"""Databases that are ready: made once, and copied for each test, since to migrate one takes longer than most tests.

How a database comes to be is the matter of `tests/db/test_schema.py`, and of the tests whose servers get no
`ADMIN_PASSWORD`.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import SecretStr

from app.config import load_settings
from app.db import schema
from app.installation import prepare
from tests.servers import PostgresServer

ADMIN_PASSWORD = "correct horse battery staple"
"""The administrator's, where a test does not choose it."""


def migrate(path: Path) -> None:
    """Put a SQLite database with today's schema there."""
    _put(path, _migrated())


def install(data_dir: Path, admin_password: str = ADMIN_PASSWORD) -> None:
    """Put there what a first start with this password leaves behind; without effect where there is a database."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = data_dir / "mnemosine.db"
    if not path.exists():
        _put(path, _installed(admin_password))


def migrated_on(server: PostgresServer) -> str:
    """The URL of a new database on `server`, with today's schema."""
    return server.new_database(template=_migrated_on(server))


def installed_on(server: PostgresServer) -> str:
    """The URL of a new database on `server`, with the administrator as well."""
    return server.new_database(template=_installed_on(server))


@cache
def _migrated() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mnemosine.db"
        _aside(lambda: schema.upgrade(f"sqlite+aiosqlite:///{path}"))
        return _whole(path)


@cache
def _installed(admin_password: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mnemosine.db"
        _prepare(Path(folder), f"sqlite+aiosqlite:///{path}", admin_password)
        return _whole(path)


@cache
def _migrated_on(server: PostgresServer) -> str:
    url = server.new_database()
    _aside(lambda: schema.upgrade(url))
    return url.rpartition("/")[2]


@cache
def _installed_on(server: PostgresServer) -> str:
    url = server.new_database(template=_migrated_on(server))
    with TemporaryDirectory() as folder:
        _prepare(Path(folder), url, ADMIN_PASSWORD)
    return url.rpartition("/")[2]


def _prepare(data_dir: Path, database_url: str, admin_password: str) -> None:
    settings = load_settings(
        env_file=None,
        data_dir=data_dir,
        database_url=database_url,
        admin_password=SecretStr(admin_password),
        default_model="offline",
    )
    _aside(lambda: asyncio.run(prepare(settings)))


def _aside(work: Callable[[], object]) -> None:
    """In a thread of its own: `work` starts an event loop, and that of the tests must not notice."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()


def _whole(path: Path) -> bytes:
    assert not path.with_name(f"{path.name}-wal").exists(), "a part of it is in the log beside it"
    return path.read_bytes()


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.chmod(path, 0o600)
