"""One server and one provider for all suites of this folder, and a key to the server."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from tests.process import ProviderProcess, ServerProcess, providing, serving

MODEL_TIMEOUT_S = 2
PASSWORD = "correct horse battery staple"


@dataclass(frozen=True, slots=True)
class Wire:
    """A server on a fake provider, and a key for it."""

    server: ServerProcess
    provider: ProviderProcess
    key: str

    @property
    def base_url(self) -> str:
        return f"{self.server.url}/v1"

    def new_key(self, **fields: Any) -> str:
        """Another key, with the limits that `fields` name."""
        body = {"name": "suite", **fields}
        reply = httpx2.post(f"{self.server.url}/api/v1/auth/api-keys", json=body, headers=self.server.headers)
        return reply.raise_for_status().json()["key"]

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        """A request as no client of the suites would send it."""
        authorized = {"Authorization": f"Bearer {self.key}", **headers}
        return httpx2.post(f"{self.server.url}{path}", json=body, headers=authorized, timeout=30)


@pytest.fixture(scope="session")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with (
        providing("--chunk-gap-ms", "4") as provider,
        serving(
            tmp_path_factory.mktemp("wire"),
            OPENAI_API_KEY="sk-canary-4f1d0c2b9a8e7f6d",
            OPENAI_BASE_URL=provider.base_url,
            DEFAULT_MODEL="openai-chat:gpt-4o-mini",
            ADMIN_PASSWORD=PASSWORD,
            AGENTS="tests.wire.agents:meteorologist,tests.wire.agents:clerk",
            MODEL_TIMEOUT_SECONDS=str(MODEL_TIMEOUT_S),
            RATE_LIMIT_PER_MINUTE="100000",
        ) as server,
    ):
        server.wait_for("/readyz")
        server.sign_in(password=PASSWORD)
        made = Wire(server, provider, "")
        yield Wire(server, provider, made.new_key())


@pytest.fixture
async def client(wire: Wire) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=wire.base_url, api_key=wire.key, max_retries=0) as opened:
        yield opened
