"""Migrations: they agree with the models, run once, and refuse what they do not know."""

import fcntl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from anyio import to_thread
from sqlalchemy import Connection, text
from sqlalchemy.pool import NullPool

from app.db import schema
from app.db.engine import create_engine
from app.db.models import Base
from app.errors import BadConfiguration, DatabaseUnavailable
from tests.servers import free_port


async def test_models_and_migrations_agree(database_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def differences(connection: Connection) -> list[object]:
        return compare_metadata(MigrationContext.configure(connection), Base.metadata)

    await to_thread.run_sync(schema.upgrade, database_url)
    engine = create_engine(database_url, poolclass=NullPool)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_the_index_of_running_runs_holds_no_others(database_url: str) -> None:
    await to_thread.run_sync(schema.upgrade, database_url)
    engine = create_engine(database_url, poolclass=NullPool)
    catalog = "pg_indexes WHERE indexname" if engine.dialect.name == "postgresql" else "sqlite_master WHERE name"
    column = "indexdef" if engine.dialect.name == "postgresql" else "sql"
    async with engine.connect() as connection:
        written = await connection.scalar(text(f"SELECT {column} FROM {catalog} = 'ix_runs_running'"))
    assert "WHERE status = 'running'" in written or "WHERE ((status)::text = 'running'::text)" in written


def test_head_is_what_alembic_takes_for_it() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.head()]


def test_an_upgrade_happens_once(database_url: str) -> None:
    assert schema.current(database_url) is None
    assert schema.upgrade(database_url)
    assert schema.current(database_url) == schema.head()
    assert not schema.upgrade(database_url)


def test_of_four_processes_that_start_at_once_one_migrates(database_url: str) -> None:
    # They wait for each other, so that they begin together whatever their imports cost.
    script = (
        "import sys; from app.db import schema; print('ready', flush=True); input(); print(schema.upgrade(sys.argv[1]))"
    )
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", script, database_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in starting:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def go(process: subprocess.Popen[str]) -> str:
        return process.communicate("\n", timeout=60)[0].strip()

    with ThreadPoolExecutor(4) as threads:
        said = list(threads.map(go, starting))
    assert sorted(said) == ["False", "False", "False", "True"]
    assert [process.returncode for process in starting] == [0, 0, 0, 0]


def test_nothing_to_migrate_loads_no_alembic(database_url: str) -> None:
    schema.upgrade(database_url)
    script = "import sys; from app.db import schema; schema.upgrade(sys.argv[1]); sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script, database_url], timeout=60, check=False).returncode == 0


async def test_a_newer_schema_is_refused_with_a_cure(database_url: str) -> None:
    await to_thread.run_sync(schema.upgrade, database_url)
    engine = create_engine(database_url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(BadConfiguration, match=r"9999.*install the version that wrote it"):
        await to_thread.run_sync(schema.upgrade, database_url)


async def test_a_failed_migration_leaves_nothing_behind(database_url: str) -> None:
    engine = create_engine(database_url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE runs (in_the_way INTEGER)"))
    with pytest.raises(Exception, match="already exists"):
        await to_thread.run_sync(schema.upgrade, database_url)
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE runs"))
    assert await to_thread.run_sync(schema.upgrade, database_url)


def test_a_missing_folder_is_a_bad_setting(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="create it first"):
        schema.upgrade(f"sqlite:///{tmp_path}/absent/mnemosine.db")


def test_looking_at_an_absent_file_does_not_create_it(tmp_path: Path) -> None:
    assert schema.current(f"sqlite:///{tmp_path}/mnemosine.db") is None
    assert list(tmp_path.iterdir()) == []


def test_no_server_is_an_outage() -> None:
    with pytest.raises(DatabaseUnavailable):
        schema.upgrade(f"postgresql://postgres@127.0.0.1:{free_port()}/mnemosine")


def test_another_process_that_migrates_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "mnemosine.db"
    with Path(f"{path}.migrating").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DatabaseUnavailable, match="another process"):
            schema.upgrade(f"sqlite:///{path}", lock_timeout_s=0.2)
