"""The numbers of two replicas are one picture, whichever answers, also when one of them is killed."""

import time

from tests.process import ServerProcess
from tests.replicas.conftest import Replicas, ask

DEADLINE_S = 60.0


def picture(server: ServerProcess) -> tuple[int, int]:
    """How many replicas were counted, and how many prompts."""
    told = server.get("/api/v1/performance/metrics").json()
    prompts = (each["count"] for each in told["requests"]["routes"] if each["route"] == "POST /api/v1/agent/prompt")
    return told["scope"]["replicas"], sum(prompts)


def test_a_killed_replica_is_counted_on_and_never_twice(replicas: Replicas) -> None:
    one, two = replicas.servers
    wait_for(one, two)
    before = settled(one, two)
    for number in range(20):
        ask(replicas.servers[number % 2], f"nonce:counted-{number}")
    wait_for(one, two, prompts=before + 20)

    two.process.kill()
    seen = [picture(one)]
    began = time.monotonic()
    while seen[-1][0] == 2:
        assert time.monotonic() - began < DEADLINE_S, "it is taken for alive for ever"
        time.sleep(0.1)
        seen.append(picture(one))
    assert {prompts for _, prompts in seen} == {before + 20}

    replicas.heal()
    wait_for(*replicas.servers, prompts=before + 20)
    for number in range(10):
        ask(replicas.servers[number % 2], f"nonce:counted-after-{number}")
    wait_for(*replicas.servers, prompts=before + 30)


def settled(*servers: ServerProcess) -> int:
    """How many prompts all say that there were, once what came before this test has arrived everywhere."""
    deadline = time.monotonic() + DEADLINE_S
    last, since = None, time.monotonic()
    while last is None or time.monotonic() - since < 4:
        assert time.monotonic() < deadline, "it goes on counting"
        found = {picture(server)[1] for server in servers}
        if found != last or len(found) > 1:
            last, since = found, time.monotonic()
        time.sleep(0.2)
    return last.pop()


def wait_for(*servers: ServerProcess, prompts: int | None = None) -> None:
    """Until each says that there are two replicas, and how many prompts both had."""
    deadline = time.monotonic() + DEADLINE_S
    for server in servers:
        while (found := picture(server)) != (2, found[1] if prompts is None else prompts):
            assert time.monotonic() < deadline, f"{found}, not {prompts} prompts"
            time.sleep(0.1)
