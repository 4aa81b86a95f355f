"""`mnemosine doctor` on real servers: what does not fit is found, what fits is not, and the cure cures."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.config import load_settings
from app.db.async_session import open_database
from app.doctor import Finding, examine
from tests.process import ROOT, serving
from tests.servers import RedisServer


async def found(
    tmp_path: Path, *, replicas: int = 1, clock: Callable[[], float] = time.time, **settings: Any
) -> dict[str, Finding]:
    """The findings by their setting, but for notes."""
    chosen = load_settings(env_file=None, data_dir=tmp_path / "data", **settings)
    findings = await examine(chosen, replicas=replicas, clock=clock)
    return {finding.setting: finding for finding in findings if finding.severity != "note"}


def doctor(
    tmp_path: Path, *options: str, files: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return subprocess.run(
        [sys.executable, "-m", "app", "doctor", *options],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path / "data"), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=limit,
    )


def test_the_defaults_fit(tmp_path: Path) -> None:
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "failures: 0, warnings: 0" in done.stdout


async def test_more_connections_than_postgresql_has(postgres_url: str, tmp_path: Path) -> None:
    # The server of the tests allows 200, of which 3 are the superuser's.
    fits: dict[str, Any] = {"database_url": postgres_url, "workers": 2, "db_pool_size": 40, "db_max_overflow": 58}
    assert await found(tmp_path, **fits) == {}
    fits["db_max_overflow"] = 59
    finding = (await found(tmp_path, **fits))["DB_POOL_SIZE+DB_MAX_OVERFLOW"]
    assert finding.severity == "failure"
    assert "1 x 2 workers may want 198 connections, and PostgreSQL has 197" in finding.problem
    assert "max_connections to 201" in finding.cure
    pool, overflow = map(int, re.findall(r"DB_\w+=(\d+)", finding.cure))
    fits["db_pool_size"], fits["db_max_overflow"] = pool, overflow
    assert await found(tmp_path, **fits) == {}


async def test_a_limit_of_the_database_counts_too(postgres_url: str, tmp_path: Path) -> None:
    async with open_database(postgres_url) as database, database.write() as session:
        await session.execute(text(f"ALTER DATABASE {postgres_url.rpartition('/')[2]} CONNECTION LIMIT 49"))
    finding = (await found(tmp_path, database_url=postgres_url))["DB_POOL_SIZE+DB_MAX_OVERFLOW"]
    assert "PostgreSQL has 49" in finding.problem


def test_replicas_count_and_a_failure_is_status_1(postgres_url: str, tmp_path: Path) -> None:
    done = doctor(tmp_path, "--replicas", "4", DATABASE_URL=postgres_url, REDIS_URL="redis://127.0.0.1:1/0")
    assert done.returncode == 1
    assert "4 x 1 workers may want 200 connections" in done.stdout
    assert "REDIS_URL=away" in done.stdout
    assert "SECRET_KEY" in done.stdout


async def test_replicas_want_one_database_one_redis_and_one_key(tmp_path: Path) -> None:
    assert set(await found(tmp_path, replicas=2)) == {"DATABASE_URL", "REDIS_URL", "SECRET_KEY"}


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[RedisServer]:
    redis_server.heal()
    yield redis_server
    redis_server.configure("maxmemory", "0")
    redis_server.configure("maxmemory-policy", "noeviction")


@pytest.mark.parametrize(
    ("bound", "policy", "setting", "severity"),
    [
        ("0", "noeviction", "maxmemory", "warning"),
        ("100mb", "noeviction", "maxmemory-policy", "failure"),
        ("100mb", "allkeys-lru", "maxmemory-policy", "warning"),
        ("100mb", "volatile-lru", None, None),
    ],
)
async def test_what_redis_does_when_it_is_full(
    redis: RedisServer, tmp_path: Path, bound: str, policy: str, setting: str | None, severity: str | None
) -> None:
    redis.configure("maxmemory", bound)
    redis.configure("maxmemory-policy", policy)
    findings = await found(tmp_path, redis_url=redis.url)
    assert [(each.setting, each.severity) for each in findings.values()] == ([(setting, severity)] if setting else [])


@pytest.mark.parametrize(("ahead_s", "severity"), [(60, "failure"), (-60, "failure"), (5, "warning"), (0, None)])
async def test_clocks_that_differ(
    postgres_url: str, redis: RedisServer, tmp_path: Path, ahead_s: float, severity: str | None
) -> None:
    redis.configure("maxmemory", "100mb")
    redis.configure("maxmemory-policy", "volatile-lru")
    urls: dict[str, Any] = {"database_url": postgres_url, "redis_url": redis.url}
    findings = await found(tmp_path, clock=lambda: time.time() - ahead_s, **urls)
    if severity is None:
        assert findings == {}
        return
    assert set(findings) == {"DATABASE_URL", "REDIS_URL"}
    for finding in findings.values():
        assert finding.severity == severity
        assert ("ahead of" if ahead_s > 0 else "behind") in finding.problem


async def test_servers_that_are_away(tmp_path: Path) -> None:
    urls: dict[str, Any] = {
        "database_url": "postgresql://nobody@127.0.0.1:1/none",
        "redis_url": "redis://127.0.0.1:1/0",
    }
    findings = await found(tmp_path, **urls)
    assert {finding.setting for finding in findings.values() if finding.is_outage} == {"DATABASE_URL", "REDIS_URL"}


def test_too_few_open_files(tmp_path: Path) -> None:
    done = doctor(tmp_path, files=3149)
    assert done.returncode == 1
    assert "a worker may need 3150 open files, and this user may have 3149" in done.stdout
    allowed = re.search(r"or set MAX_REQUESTS_IN_FLIGHT=(\d+)", done.stdout)
    assert allowed
    done = doctor(tmp_path, files=3149, MAX_REQUESTS_IN_FLIGHT=allowed[1], PROVIDER_MAX_CONCURRENCY=allowed[1])
    assert done.returncode == 0, done.stdout


async def test_a_folder_that_others_may_write_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)
    finding = (await found(tmp_path))["DATA_DIR"]
    assert finding.severity == "failure"
    assert "chmod 700" in finding.cure


async def test_time_outs_that_contradict_each_other(tmp_path: Path) -> None:
    behind_a_proxy: dict[str, Any] = {"trusted_proxies": "127.0.0.1"}
    assert (await found(tmp_path, **behind_a_proxy))["KEEP_ALIVE_SECONDS"].severity == "warning"
    assert await found(tmp_path, **behind_a_proxy, keep_alive_seconds=75) == {}
    settings = load_settings(env_file=None, data_dir=tmp_path / "data", graceful_timeout_seconds=20)
    assert "GRACEFUL_TIMEOUT_SECONDS" in {finding.setting for finding in await examine(settings)}
    settings = load_settings(env_file=None, data_dir=tmp_path / "data", graceful_timeout_seconds=115)
    assert [finding.setting for finding in await examine(settings)] == []


def test_the_server_says_the_same_in_a_line_and_takes_the_files_it_needs(postgres_url: str, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        with serving(
            tmp_path,
            DATABASE_URL=postgres_url,
            DB_POOL_SIZE="200",
            REDIS_URL="redis://127.0.0.1:1/0",
            TRUSTED_PROXIES="127.0.0.1",
        ) as server:
            server.wait_for("/readyz")
            lines = [line for line in server.output().splitlines() if "app.commands.serve" in line]
            limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(lines) == 2, server.output()
    assert "DB_POOL_SIZE+DB_MAX_OVERFLOW=200+30" in lines[0]
    assert "KEEP_ALIVE_SECONDS=5" in lines[1]
    soft = re.search(r"Max open files\s+(\d+)", limits)
    assert soft
    assert int(soft[1]) == 3 * 1000 + 230 + 64 + 100
