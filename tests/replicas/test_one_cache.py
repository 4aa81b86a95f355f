"""Two replicas are one cache: a hit on either, one clear, one model call, and scopes that hold over both."""

import asyncio

import httpx2

from tests.replicas.conftest import ROUNDS, Replicas, ask, in_some_round


def test_what_one_replica_answered_is_a_hit_on_the_other(replicas: Replicas) -> None:
    one, two = replicas.servers

    def attempt(number: int) -> list[str]:
        first, second = ask(one, f"nonce:hit-{number}"), ask(two, f"nonce:hit-{number}")
        assert second.json()["response"] == first.json()["response"]
        return [first.headers["x-cache"], second.headers["x-cache"]]

    in_some_round(attempt, ["MISS", "HIT"])


def test_a_clear_on_one_replica_is_a_clear_on_both(replicas: Replicas) -> None:
    one, two = replicas.servers

    def attempt(number: int) -> list[str]:
        message = f"nonce:cleared-{number}"
        before = [ask(server, message).headers["x-cache"] for server in (one, two, one, two)]
        assert httpx2.post(f"{two.url}/api/v1/performance/cache/clear", headers=two.headers).status_code == 200
        # Whatever the machine does, nothing that was stored before is served now.
        after = ask(one, message)
        assert after.headers["x-cache"] == "MISS"
        calls = replicas.provider.stats()["calls"]
        third = ask(two, message).headers["x-cache"]
        assert (third == "HIT") == (replicas.provider.stats()["calls"] == calls)
        return [*before, third]

    in_some_round(attempt, ["MISS", "HIT", "HIT", "HIT", "HIT"])


async def test_two_hundred_equal_prompts_over_both_are_one_model_call(replicas: Replicas) -> None:
    replicas.provider.control(latency_s=0.3)

    async def crowd(message: str) -> tuple[int, int]:
        before = replicas.provider.stats()["calls"]
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(headers=replicas.headers, timeout=60, limits=limits) as client:
            asked = [
                client.post(f"{replicas.servers[number % 2].url}/api/v1/agent/prompt", json={"message": message})
                for number in range(200)
            ]
            replies = await asyncio.gather(*asked)
        assert {reply.status_code for reply in replies} == {200}
        assert len({reply.json()["response"] for reply in replies}) == 1
        misses = sum(reply.headers["x-cache"] == "MISS" for reply in replies)
        return misses, replicas.provider.stats()["calls"] - before

    rounds = [await crowd("nonce:crowd-0")]
    while rounds[-1] != (1, 1) and len(rounds) < ROUNDS:
        rounds.append(await crowd(f"nonce:crowd-{len(rounds)}"))
    assert rounds[-1] == (1, 1), rounds


def test_two_users_share_nothing_by_default(replicas: Replicas) -> None:
    one, two = replicas.servers
    ada, bob = replicas.user("ada"), replicas.user("bob")
    before = replicas.provider.stats()["calls"]
    replies = [ask(server, "nonce:mine", user) for user in (ada, bob) for server in (one, two)]
    assert replies[2].headers["x-cache"] == "MISS"
    assert "age" not in replies[2].headers
    assert replicas.provider.stats()["calls"] >= before + 2


def test_two_users_share_all_answers_of_a_shared_agent(replicas: Replicas) -> None:
    one, two = replicas.servers
    eve, fay = replicas.user("eve"), replicas.user("fay")

    def attempt(number: int) -> list[str]:
        asked = [(eve, one), (fay, two), (eve, two), (fay, one)]
        replies = [ask(server, f"nonce:ours-{number}", user, agent="everybody") for user, server in asked]
        return [reply.headers["x-cache"] for reply in replies]

    in_some_round(attempt, ["MISS", "HIT", "HIT", "HIT"])
