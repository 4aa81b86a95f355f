"""The whole application inside a test: opened on its own data directory, reached through its own front door."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from pydantic import SecretStr

from app.api.front_door import FrontDoor
from app.config import load_settings
from app.installation import prepare
from app.main import create_app
from app.runtime import Runtime
from tests.prepared import ADMIN_PASSWORD, install

USER_PASSWORD = "a password of a user"


@dataclass(frozen=True, slots=True)
class Application:
    """A running application: `client` sends as the administrator, `anonymous` as nobody."""

    door: FrontDoor
    client: httpx2.AsyncClient
    anonymous: httpx2.AsyncClient

    @property
    def runtime(self) -> Runtime:
        return self.door.api.state.runtime

    @asynccontextmanager
    async def signed_in(self, username: str, password: str) -> AsyncGenerator[httpx2.AsyncClient]:
        """A client that sends with a fresh token of this user."""
        reply = await self.anonymous.post("/api/v1/auth/token", data={"username": username, "password": password})
        assert reply.status_code == 200, reply.text
        async with self.with_credential(reply.json()["access_token"]) as client:
            yield client

    def with_credential(self, credential: str) -> httpx2.AsyncClient:
        """A client that sends with a token or an API key."""
        return _client(self.door, Authorization=f"Bearer {credential}")

    @asynccontextmanager
    async def user(self, username: str = "ada", role: str = "user") -> AsyncGenerator[httpx2.AsyncClient]:
        """A client of a new user."""
        user = {"username": username, "password": USER_PASSWORD, "role": role}
        reply = await self.client.post("/api/v1/users", json=user)
        assert reply.status_code == 201, reply.text
        async with self.signed_in(username, USER_PASSWORD) as client:
            yield client

    async def prompt(self, message: str, **fields: Any) -> httpx2.Response:
        """Ask as the administrator."""
        return await self.client.post("/api/v1/agent/prompt", json={"message": message, **fields})


@asynccontextmanager
async def open_application(data_dir: Path, **settings: Any) -> AsyncGenerator[Application]:
    """The application on `settings`, with an administrator who is signed in.

    A `database_url` may lead to an empty database, which then is migrated first, or to one of `tests/prepared.py`.
    """
    chosen = load_settings(
        env_file=None, data_dir=data_dir, admin_password=SecretStr(ADMIN_PASSWORD), log_level="warning", **settings
    )
    if "database_url" not in settings:
        await asyncio.to_thread(install, data_dir)
    await prepare(chosen)
    door = create_app(chosen)
    async with door.api.router.lifespan_context(door.api), _client(door) as anonymous:
        reply = await anonymous.post("/api/v1/auth/token", data={"username": "admin", "password": ADMIN_PASSWORD})
        token = reply.json()["access_token"]
        async with _client(door, Authorization=f"Bearer {token}") as client:
            yield Application(door, client, anonymous)


def _client(door: FrontDoor, **headers: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(door), base_url="http://127.0.0.1", headers=headers)
