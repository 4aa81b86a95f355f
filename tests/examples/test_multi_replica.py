"""`examples/multi-replica`: its script starts two replicas and nginx, and they are one service."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.examples.conftest import EXAMPLES, PASSWORD
from tests.process import ROOT, ServerProcess, providing, running
from tests.servers import PostgresServer, RedisServer, ServerMissing, free_port, nginx_binary

FOLDER = EXAMPLES / "multi-replica"

try:
    nginx_binary()
except ServerMissing as reason:
    pytestmark = pytest.mark.skip(str(reason))


@pytest.fixture
def service(postgres_server: PostgresServer, redis_server: RedisServer, tmp_path: Path) -> Iterator[ServerProcess]:
    """The script, with `url` at nginx; the replicas listen on the two ports after it."""
    postgres_server.heal()
    redis_server.heal()
    database_url = postgres_server.new_database()
    port = free_port()
    with providing() as provider:
        settings = {
            "PATH": f"{Path(sys.executable).parent}:{nginx_binary().parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_server.new_database(),
            "ADMIN_PASSWORD": PASSWORD,
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": provider.base_url,
            "DEFAULT_MODEL": "openai-chat:fake",
            "PORT": str(port),
            "FOLDER": str(tmp_path / "written"),
        }
        with running([str(FOLDER / "serve.sh")], tmp_path, port=port, **settings) as started:
            try:
                for each in (started, *replicas(started)):
                    each.wait_for("/readyz")
                started.sign_in(password=PASSWORD)
                yield started
            finally:
                end(started)
        assert provider.stats()["calls"] == 1
    postgres_server.drop_database(database_url)


def replicas(service: ServerProcess) -> list[ServerProcess]:
    port = int(service.url.rpartition(":")[2])
    return [
        ServerProcess(service.process, f"http://127.0.0.1:{port + number}", service.printed, service.headers)
        for number in (1, 2)
    ]


def end(service: ServerProcess) -> None:
    """As SIGTERM to the script ends it: nobody that it started is left."""
    started = psutil.Process(service.process.pid).children(recursive=True)
    assert service.stop() == 0, service.output()
    _, left = psutil.wait_procs(started, timeout=10)
    for process in left:
        process.kill()
    assert left == []


def test_its_replicas_are_one_service_and_one_of_them_is_enough(service: ServerProcess) -> None:
    def ask(server: ServerProcess) -> httpx2.Response:
        body = {"agent": "support", "message": "When are you open?"}
        return httpx2.post(f"{server.url}/api/v1/agent/prompt", json=body, headers=service.headers, timeout=60)

    # Through nginx, then at each of them: one answer, and whoever signed in anywhere is known everywhere.
    replies = [ask(server) for server in (service, *replicas(service))]
    assert [reply.status_code for reply in replies] == [200] * 3, service.output()
    assert [reply.headers["x-cache"] for reply in replies] == ["MISS", "HIT", "HIT"]
    assert len({reply.json()["response"] for reply in replies}) == 1

    victim, other = replicas(service)
    port = victim.url.rpartition(":")[2]
    [process] = [
        child for child in psutil.Process(service.process.pid).children() if child.cmdline()[-2:] == ["--port", port]
    ]
    process.kill()
    process.wait(10)
    for _ in range(10):
        assert ask(service).status_code == 200
    assert ask(other).headers["x-cache"] == "HIT"
