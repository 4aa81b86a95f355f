"""Backup and restore as docs/operations.md has them: of a server that runs, into one that is new."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx2

from tests.process import ServerProcess, serving
from tests.servers import PostgresServer

PASSWORD = "a password for tests"


def add_user(server: ServerProcess) -> None:
    server.sign_in(password=PASSWORD)
    made = {"username": "ada", "password": PASSWORD, "role": "user"}
    assert httpx2.post(f"{server.url}/api/v1/users", json=made, headers=server.headers).status_code == 201


def assert_user(server: ServerProcess, token: dict[str, str]) -> None:
    server.headers = token
    assert server.get("/api/v1/auth/me").status_code == 200, "the old token is good with the old key"
    server.sign_in("ada", PASSWORD)
    assert server.get("/api/v1/auth/me").json()["username"] == "ada"


def test_sqlite(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name / "data").mkdir(parents=True, mode=0o700)
    old, new = tmp_path / "old" / "data", tmp_path / "new" / "data"
    with serving(tmp_path / "old", ADMIN_PASSWORD=PASSWORD) as server:
        add_user(server)
        token = server.headers
        with (
            closing(sqlite3.connect(old / "mnemosine.db")) as source,
            closing(sqlite3.connect(new / "mnemosine.db")) as target,
        ):
            source.backup(target)
        shutil.copy2(old / "secret.key", new)
        server.stop()
    with serving(tmp_path / "new") as server:
        assert_user(server, token)
        server.stop()


def test_postgresql(tmp_path: Path, postgres_server: PostgresServer) -> None:
    postgres_server.heal()
    old, new = postgres_server.new_database(), postgres_server.new_database()
    options = postgres_server._socket_options()  # pyright: ignore[reportPrivateUsage]
    run = postgres_server._run  # pyright: ignore[reportPrivateUsage]
    with serving(tmp_path, DATABASE_URL=old, ADMIN_PASSWORD=PASSWORD) as server:
        add_user(server)
        token = server.headers
        run("pg_dump", *options, "--format=custom", "--file=backup", old.rpartition("/")[2])
        server.stop()
    run("pg_restore", *options, "--no-owner", f"--dbname={new.rpartition('/')[2]}", "backup")
    with serving(tmp_path, DATABASE_URL=new) as server:
        assert_user(server, token)
        server.stop()
    for url in (old, new):
        postgres_server.drop_database(url)
