"""`examples/support-bot`: a prompt, whose answers everybody shares."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.examples.conftest import Example


@pytest.fixture(scope="module")
def bot(serve: Callable[..., Example]) -> Example:
    return serve("support-bot", AGENTS_DIR="agents")


def test_its_page_shows_a_miss_then_a_hit_then_the_same_answer_streamed(bot: Example, tmp_path: Path) -> None:
    before = bot.provider.stats()["calls"]
    miss, hit, streamed = bot.run_page(tmp_path).splitlines()
    assert (miss.lower(), hit.lower()) == ("x-cache: miss", "x-cache: hit")
    assert "May I bring a lamp back?" in streamed
    assert bot.provider.stats()["calls"] == before + 1


def test_two_users_share_an_answer_and_twenty_at_once_are_one_call(bot: Example) -> None:
    first, second = bot.user("anna"), bot.user("ben")
    before = bot.provider.stats()["calls"]
    asked = [bot.prompt("nonce:shared", headers, agent="support") for headers in (first, second)]
    assert [reply.headers["x-cache"] for reply in asked] == ["MISS", "HIT"]
    assert asked[0].json()["response"] == asked[1].json()["response"]
    bot.provider.control(latency_s=0.5)
    with ThreadPoolExecutor(20) as threads:
        asking = [threads.submit(bot.prompt, "nonce:crowd", who, agent="support") for who in [first, second] * 10]
        replies = [reply.result() for reply in asking]
    bot.provider.control(latency_s=0.0)
    assert {reply.status_code for reply in replies} == {200}
    assert bot.provider.stats()["calls"] == before + 2


def test_it_is_the_leanest_kind_of_agent(bot: Example) -> None:
    told = bot.server.get("/api/v1/agents/support").json()
    assert told["cache"] == {"enabled": True, "scope": "shared", "ttl": 600}
    assert told["tier"] == "direct", told["tier_reason"]
