"""The whole application in this process, asked through its front door: without a socket, as its administrator."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.api.front_door import FrontDoor
from app.config import load_settings
from app.installation import prepare
from app.main import create_app
from app.runtime import Runtime

PASSWORD = "a password for benchmarks"


class Visitor:
    """Asks one application as its administrator."""

    def __init__(self, door: FrontDoor, token: str) -> None:
        self.door = door
        self.token = token
        self._headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        self._headers.append((b"authorization", f"Bearer {token}".encode()))

    @property
    def runtime(self) -> Runtime:
        return self.door.api.state.runtime

    async def post(self, path: str, body: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers and body of the answer."""
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [*self._headers, (b"content-length", b"%d" % len(body))],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        status, headers, said = 0, {}, b""
        waits_for_ever = asyncio.Event()
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not unread:
                await waits_for_ever.wait()
            return unread.pop()

        async def send(message: Any) -> None:
            nonlocal status, headers, said
            if message["type"] == "http.response.start":
                status, headers = message["status"], dict(message["headers"])
            else:
                said += message.get("body", b"")

        await self.door(scope, receive, send)
        return status, headers, said

    async def prompt(self, message: str, conversation: str | None = None) -> dict[bytes, bytes]:
        """The headers of a good answer."""
        body = {"message": message} | ({"conversation_id": conversation} if conversation else {})
        status, headers, said = await self.post("/api/v1/agent/prompt", json.dumps(body).encode())
        assert status == 200, said
        return headers


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Visitor]:
    """An application on the model that the environment names, with an empty data directory."""
    settings = load_settings(
        env_file=None,
        data_dir=folder,
        admin_password=SecretStr(PASSWORD),
        default_model="openai-chat:gpt-4o-mini",
        log_level="warning",
        rate_limit_per_minute=1_000_000,
        cache_max_bytes=2**40,
    )
    await prepare(settings)
    door = create_app(settings)
    async with door.api.router.lifespan_context(door.api):
        runtime: Runtime = door.api.state.runtime
        await runtime.agent_room
        token = (await runtime.callers.sign_in("admin", PASSWORD, peer="127.0.0.1")).token
        yield Visitor(door, token)
