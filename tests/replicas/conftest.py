"""Two replicas, each with a folder of its own, on one PostgreSQL, one Redis and one fake provider."""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.process import ProviderProcess, ServerProcess, providing, running
from tests.servers import PostgresServer, RedisServer, free_port

PASSWORD = "a password for tests"
ROUNDS = 4


class Replica:
    """One `mnemosine serve` that can be ended and started again on its port and its folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.port = free_port()
        self.folder = folder
        self._environment = environment
        self._stack = ExitStack()
        folder.mkdir()

    def start(self) -> None:
        """Begin to start; `server.wait_for("/readyz")` says when it is there."""
        command = [sys.executable, "-m", "app", "serve", "--port", str(self.port)]
        process = running(command, self.folder, port=self.port, **self._environment)
        self.server: ServerProcess = self._stack.enter_context(process)

    def end(self) -> None:
        """End it at once, if it runs."""
        self._stack.close()


class Replicas:
    """The two, and who may use them."""

    def __init__(self, replicas: list[Replica], provider: ProviderProcess) -> None:
        self.replicas = replicas
        self.provider = provider
        self.headers: dict[str, str] = {}

    @property
    def servers(self) -> tuple[ServerProcess, ServerProcess]:
        one, two = self.replicas
        return one.server, two.server

    def heal(self) -> None:
        """Have both running and ready, and signed in as the administrator."""
        self.provider.control(fault=None, latency_s=0.0)
        for replica in self.replicas:
            if replica.server.process.poll() is not None:
                replica.end()
                replica.start()
        for server in self.servers:
            server.wait_for("/readyz")
        if not self.headers:
            self.servers[0].sign_in(password=PASSWORD)
            self.headers = self.servers[0].headers
        for server in self.servers:
            server.headers = self.headers

    def user(self, name: str) -> dict[str, str]:
        """The headers of a new user, good on both."""
        one, _ = self.servers
        made = {"username": name, "password": PASSWORD, "role": "user"}
        assert httpx2.post(f"{one.url}/api/v1/users", json=made, headers=one.headers).status_code == 201
        form = {"username": name, "password": PASSWORD}
        token = httpx2.post(f"{one.url}/api/v1/auth/token", data=form).json()["access_token"]
        return {"Authorization": f"Bearer {token}"}

    def key(self, **wishes: object) -> tuple[str, dict[str, str]]:
        """The id and the headers of a new API key, good on both."""
        one, _ = self.servers
        made = httpx2.post(f"{one.url}/api/v1/auth/api-keys", json={"name": "tests", **wishes}, headers=one.headers)
        assert made.status_code == 201, made.text
        return made.json()["id"], {"Authorization": f"Bearer {made.json()['key']}"}


def ask(
    server: ServerProcess, message: str, headers: dict[str, str] | None = None, **fields: object
) -> httpx2.Response:
    """A prompt to one replica, as the administrator unless `headers` say otherwise."""
    reply = httpx2.post(
        f"{server.url}/api/v1/agent/prompt",
        json={"message": message, **fields},
        headers=headers or server.headers,
        timeout=60,
    )
    assert reply.status_code in (200, 429), reply.text
    return reply


def in_some_round(attempt: Callable[[int], Any], expected: Any) -> None:
    """Try until the outcome is `expected`.

    A process that a busy machine stalls for half a second trusts nothing that it remembers, and has a miss where there
    should be a hit. What never holds across replicas fails in every round.
    """
    found = [attempt(0)]
    while found[-1] != expected and len(found) < ROUNDS:
        found.append(attempt(len(found)))
    assert found[-1] == expected, found


@pytest.fixture(scope="package")
def _replicas(
    postgres_server: PostgresServer, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    postgres_server.heal()
    redis_server.heal()
    folder = tmp_path_factory.mktemp("replicas")
    (folder / "agents").mkdir()
    shared = {"instructions": "Answer.", "metadata": {"mnemosine": {"cache": {"scope": "shared"}}}}
    (folder / "agents" / "everybody.json").write_text(json.dumps(shared))
    database_url = postgres_server.new_database()
    with providing() as provider, ExitStack() as stack:
        environment = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_server.new_database(),
            "SECRET_KEY": "one key for both replicas, 32 bytes",
            "ADMIN_PASSWORD": PASSWORD,
            "AGENTS_DIR": str(folder / "agents"),
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": provider.base_url,
            "DEFAULT_MODEL": "openai-chat:fake",
            "RATE_LIMIT_PER_MINUTE": "0",
            "KEEP_ALIVE_SECONDS": "75",
            "DB_POOL_SIZE": "5",
            "LOG_LEVEL": "warning",
        }
        replicas = Replicas([Replica(folder / name, environment) for name in ("one", "two")], provider)
        for replica in replicas.replicas:
            replica.start()
            stack.callback(replica.end)
        yield replicas
        with ThreadPoolExecutor() as threads:
            list(threads.map(ServerProcess.stop, replicas.servers))
    postgres_server.drop_database(database_url)


@pytest.fixture
def replicas(_replicas: Replicas, postgres_server: PostgresServer, redis_server: RedisServer) -> Replicas:
    """Both replicas, ready, whatever an earlier test did to them."""
    postgres_server.heal()
    redis_server.heal()
    _replicas.heal()
    return _replicas
