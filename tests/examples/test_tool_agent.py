"""`examples/tool-agent`: an agent in Python whose tools know who asks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.examples.conftest import Example

CALLS = 'call:pieces_left {"article": "lamp"} call:price_with_tax {"price": 100}'


@pytest.fixture(scope="module")
def shop(serve: Callable[..., Example]) -> Example:
    return serve("tool-agent", "shop:shop")


def test_its_page_runs(shop: Example, tmp_path: Path) -> None:
    printed = shop.run_page(tmp_path)
    assert "event: done" in printed
    assert '"pieces_left"' in printed


def test_both_tools_run_with_the_dependencies_of_the_caller(shop: Example) -> None:
    reply = shop.prompt(CALLS, agent="shop")
    body = reply.json()
    assert reply.status_code == 200
    assert "3 pieces of lamp for admin" in body["response"]
    assert "119" in body["response"]
    assert body["usage"]["requests"] == 2
    other = shop.prompt(CALLS, shop.user("ada"), agent="shop")
    assert "3 pieces of lamp for ada" in other.json()["response"], "never the answer of another user"


def test_a_stream_tells_of_the_tools(shop: Example) -> None:
    told = shop.prompt(CALLS, agent="shop", stream=True).text
    assert told.count("event: tool_start") == told.count("event: tool_end") == 2


def test_the_server_knows_what_its_tools_do(shop: Example) -> None:
    told = shop.server.get("/api/v1/agents/shop").json()
    assert {tool["name"]: tool["effect"] for tool in told["tools"]} == {"price_with_tax": "pure", "pieces_left": "read"}
    assert [agent["name"] for agent in shop.server.get("/api/v1/agents").json()] == ["default", "shop"]
    assert shop.server.get("/api/v1/agents/nobody").status_code == 404


def test_what_was_only_computed_is_kept_and_what_was_looked_up_is_not(shop: Example) -> None:
    def twice(message: str) -> list[str]:
        return [shop.prompt(message, agent="shop").headers["x-cache"] for _ in range(2)]

    assert twice('call:price_with_tax {"price": 50}') == ["MISS", "HIT"]
    assert twice('call:pieces_left {"article": "chair"}') == ["MISS", "MISS"]
