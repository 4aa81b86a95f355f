"""A server to be fuzzed, with people who may come in."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from tests.process import ServerProcess, serving

PASSWORD = "a password for tests"


@dataclass(frozen=True, slots=True)
class Target:
    """A running server, its document, and credentials: an administrator's and a user's API key, and a user's token."""

    server: ServerProcess
    document: dict[str, Any]
    admin: str
    user: str
    token: str
    known: dict[str, list[str]]
    """Path parameters that lead somewhere."""

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])


@pytest.fixture(scope="session", params=["sqlite"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    environment = {"ADMIN_PASSWORD": PASSWORD, "RATE_LIMIT_PER_MINUTE": "0", "LOG_LEVEL": "error"}
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        server.heal()
        environment["DATABASE_URL"] = server.new_database()
    with serving(tmp_path_factory.mktemp("fuzz"), **environment) as server:
        server.wait_for("/readyz")
        server.sign_in(password=PASSWORD)
        with httpx2.Client(base_url=server.url, headers=server.headers, timeout=30) as admin:
            invited = _invited(server, admin)
        yield invited
        assert server.process.poll() is None, server.output()
        assert "Traceback" not in server.output(), server.output()[-5000:]


def _invited(server: ServerProcess, admin: httpx2.Client) -> Target:
    for name in ("ada", "eve"):  # eve is there to be changed and deleted
        user = {"username": name, "password": PASSWORD, "role": "user"}
        user_id = admin.post("/api/v1/users", json=user).json()["id"]
    reply = admin.post("/api/v1/auth/token", data={"username": "ada", "password": PASSWORD})
    token = reply.json()["access_token"]
    with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}) as ada:
        key = ada.post("/api/v1/auth/api-keys", json={"name": "fuzz"}).json()["key"]
        conversation = ada.post("/api/v1/conversations", json={}).json()["id"]
        response = ada.post("/v1/responses", json={"model": "default", "input": "Hello"}).json()["id"]
    return Target(
        server,
        admin.get("/openapi.json").json(),
        admin.post("/api/v1/auth/api-keys", json={"name": "fuzz"}).json()["key"],
        key,
        token,
        {
            "user_id": [user_id],
            "conversation_id": [conversation],
            "response_id": [response],
            "name": ["default"],
        },
    )
