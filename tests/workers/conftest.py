"""Two processes that are one server to their callers, for all suites here: on one machine, and as replicas."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.process import ProviderProcess, ServerProcess, providing, serving
from tests.servers import PostgresServer, RedisServer
from tests.siege import Answer, Line, burst

ADMIN_PASSWORD = "a password for tests"
USER_PASSWORD = "a password of a user"
PROMPT = "/api/v1/agent/prompt"
ME = "/api/v1/auth/me"

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who has signed in."""

    id: str
    name: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass(frozen=True, slots=True)
class House:
    """Servers that share what there is to share, on one provider."""

    servers: tuple[ServerProcess, ...]
    provider: ProviderProcess
    has_redis: bool

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    @property
    def admin(self) -> dict[str, str]:
        return self.servers[0].headers

    def pids(self) -> set[int]:
        """The processes that answer requests."""
        found: set[int] = set()
        for server in self.servers:
            children = {child.pid for child in psutil.Process(server.process.pid).children()}
            found |= children or {server.process.pid}
        return found

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        """As the administrator, by whichever process comes; `headers` may name somebody else."""
        sent = self.admin | headers
        return httpx2.request(method, self.servers[0].url + path, json=body, headers=sent, timeout=60)

    def token(self, name: str, password: str = USER_PASSWORD) -> str:
        form = {"username": name, "password": password}
        reply = httpx2.post(f"{self.servers[0].url}/api/v1/auth/token", data=form, timeout=60)
        assert reply.status_code == 200, reply.text
        return reply.json()["access_token"]

    def user(self) -> User:
        """Somebody new."""
        name = f"user{next(_numbers)}"
        made = self.request("POST", "/api/v1/users", {"username": name, "password": USER_PASSWORD})
        assert made.status_code == 201, made.text
        return User(made.json()["id"], name, self.token(name))

    def key(self, user: User, **fields: Any) -> dict[str, Any]:
        """A new API key of the user."""
        made = self.request("POST", "/api/v1/auth/api-keys", {"name": "suite", **fields}, **user.headers)
        assert made.status_code == 201, made.text
        return made.json()

    @asynccontextmanager
    async def lines(self) -> AsyncGenerator[list[Line]]:
        """A connection to each of the two processes."""
        async with self.bundles(1) as bundles:
            yield [line for bundle in bundles for line in bundle]

    @asynccontextmanager
    async def bundles(self, number: int) -> AsyncGenerator[list[list[Line]]]:
        """`number` connections to each of the two processes."""
        opened: list[Line] = []
        found: dict[int, list[Line]] = {}
        try:
            async with asyncio.timeout(60):
                while len(found) < 2 or min(len(lines) for lines in found.values()) < number:
                    for url in self.urls:
                        line = await Line.open(url)
                        opened.append(line)
                        assert (await line.ask("GET", "/livez")).status == 200
                        line.worker = self.worker_behind(line)
                        found.setdefault(line.worker, []).append(line)
            yield [lines[:number] for lines in found.values()]
        finally:
            await asyncio.gather(*(line.aclose() for line in opened))

    async def burst(self, number: int, method: str, path: str, body: Any, **headers: str) -> list[Answer]:
        """`number` requests at once, on all processes."""
        return await burst(self.urls, number, method, path, body, **headers)

    def worker_behind(self, line: Line) -> int:
        """The pid of the process that has this connection."""
        for pid in self.pids():
            for connection in psutil.Process(pid).net_connections("tcp"):
                if connection.raddr and connection.raddr.port == line.port:
                    return pid
        raise AssertionError("nobody is at the other end")


@pytest.fixture(scope="package")
def provider() -> Iterator[ProviderProcess]:
    with providing() as started:
        yield started


@pytest.fixture(scope="package", params=["workers", pytest.param("replicas", marks=pytest.mark.service)])
def house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, provider: ProviderProcess
) -> Iterator[House]:
    """Two workers of one machine on SQLite; then two servers on PostgreSQL and Redis."""
    with ExitStack() as stack:
        if request.param == "workers":
            folder = tmp_path_factory.mktemp("workers")
            yield open_house(stack, provider, [folder], "--workers", "2")
            return
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        redis: RedisServer = request.getfixturevalue("redis_server")
        postgres.heal()
        redis.heal()
        url = postgres.new_database()
        stack.callback(postgres.drop_database, url)
        folders = [tmp_path_factory.mktemp("replica") for _ in range(2)]
        yield open_house(stack, provider, folders, DATABASE_URL=url, REDIS_URL=redis.new_database())


def open_house(
    stack: ExitStack, provider: ProviderProcess, folders: list[Path], *options: str, **environment: str
) -> House:
    """One server for each folder, ready, ended with `stack`."""
    settings = {
        "OPENAI_API_KEY": "sk-for-tests",
        "OPENAI_BASE_URL": provider.base_url,
        "DEFAULT_MODEL": "openai-chat:gpt-4o-mini",
        "ADMIN_PASSWORD": ADMIN_PASSWORD,
        "SECRET_KEY": "a secret of two replicas, which is long enough",
        "RATE_LIMIT_PER_MINUTE": "0",
    } | environment
    servers = tuple(stack.enter_context(serving(folder, *options, **settings)) for folder in folders)
    for server in servers:
        server.wait_for("/readyz")
    servers[0].sign_in(password=ADMIN_PASSWORD)
    return House(servers, provider, has_redis="REDIS_URL" in settings)
