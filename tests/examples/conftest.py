"""What the tests of the examples share: an example served as its README says, by the fake provider."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.pages import run_blocks
from tests.process import ROOT, ProviderProcess, ServerProcess, free_port, providing, running

EXAMPLES = ROOT / "examples"
PASSWORD = "a password for tests"


@dataclass(frozen=True)
class Example:
    """A folder of `examples/`, served; `provider` is who answers behind it."""

    folder: Path
    server: ServerProcess
    provider: ProviderProcess

    def prompt(self, message: str, headers: dict[str, str] | None = None, **fields: object) -> httpx2.Response:
        """Ask as the administrator, or as whoever has `headers`."""
        body = {"message": message, **fields}
        url = f"{self.server.url}/api/v1/agent/prompt"
        return httpx2.post(url, json=body, headers=headers or self.server.headers, timeout=60)

    def user(self, name: str) -> dict[str, str]:
        """The headers of a new user."""
        made = {"username": name, "password": PASSWORD}
        httpx2.post(f"{self.server.url}/api/v1/users", json=made, headers=self.server.headers).raise_for_status()
        token = httpx2.post(f"{self.server.url}/api/v1/auth/token", data=made).json()["access_token"]
        return {"Authorization": f"Bearer {token}"}

    def run_page(self, tmp_path: Path) -> str:
        """Run the blocks of its README; gives what they printed."""
        data = Path(self.server.printed.name).parent / "data"
        return run_blocks(self.folder / "README.md", self.server, tmp_path, data=data)


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Example]]:
    """Serves `examples/NAME` from within, with the arguments and variables that its README names."""
    with ExitStack() as stack:

        def served(name: str, *arguments: str, **environment: str) -> Example:
            provider = stack.enter_context(providing())
            port = free_port()
            settings = {
                "PYTHONPATH": str(ROOT),
                "ADMIN_PASSWORD": PASSWORD,
                "OPENAI_API_KEY": "any",
                "OPENAI_BASE_URL": provider.base_url,
                "DEFAULT_MODEL": "openai-chat:fake",
            }
            command = [sys.executable, "-m", "app", "serve", *arguments, "--port", str(port)]
            folder = EXAMPLES / name
            process = running(command, tmp_path_factory.mktemp(name), folder, port=port, **settings | environment)
            server = stack.enter_context(process)
            server.wait_for("/readyz")
            server.sign_in(password=PASSWORD)
            return Example(folder, server, provider)

        yield served
