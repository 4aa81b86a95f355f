"""Four workers without Redis are one cache: a hit on all, a clear on all, warm after a restart."""

from collections import Counter
from pathlib import Path

import httpx2

from tests.process import ServerProcess, serving


def states(server: ServerProcess, message: str, times: int) -> Counter[str]:
    """How the cache took part in `times` equal prompts, each on a connection (and so a worker) of its own."""
    found: Counter[str] = Counter()
    for _ in range(times):
        reply = httpx2.post(
            f"{server.url}/api/v1/agent/prompt", json={"message": message}, headers=server.headers, timeout=60
        )
        assert reply.status_code == 200, reply.text
        found[reply.headers["x-cache"]] += 1
    return found


def test_four_workers_are_one_cache(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "4", RATE_LIMIT_PER_MINUTE="0") as server:
        server.wait_for("/readyz")
        server.sign_in()
        assert states(server, "Hello", 24) == {"MISS": 1, "HIT": 23}
        assert httpx2.post(f"{server.url}/api/v1/performance/cache/clear", headers=server.headers).status_code == 200
        assert states(server, "Hello", 24) == {"MISS": 1, "HIT": 23}
        password = server.first_password()
        assert server.stop() == 0
    with serving(tmp_path, "--workers", "4", RATE_LIMIT_PER_MINUTE="0") as server:
        server.wait_for("/readyz")
        server.sign_in(password=password)
        assert states(server, "Hello", 24) == {"HIT": 24}
