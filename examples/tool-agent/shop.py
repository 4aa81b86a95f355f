"""An agent in Python with two tools, and what they may look at: `mnemosine serve shop:shop` in this folder."""

from dataclasses import dataclass

from pydantic_ai import Agent, RunContext, Tool

from app.core.run import Caller


@dataclass(frozen=True)
class Stock:
    """What the tools of one run may look at."""

    username: str
    pieces: dict[str, int]


def price_with_tax(price: float) -> float:
    """The price with 19 % tax."""
    return round(price * 1.19, 2)


def pieces_left(context: RunContext[Stock], article: str) -> str:
    """How many pieces of an article are left."""
    return f"{context.deps.pieces.get(article, 0)} pieces of {article} for {context.deps.username}"


shop = Agent(
    None,
    deps_type=Stock,
    instructions="You help in a shop. Look things up with your tools.",
    description="Knows prices and stock.",
    tools=[
        Tool(price_with_tax, metadata={"effect": "pure"}),
        Tool(pieces_left, metadata={"effect": "read"}),
    ],
)


def shop_deps(caller: Caller) -> Stock:
    """Made for every run, for whoever asks."""
    return Stock(caller.username, {"lamp": 3, "chair": 0})
