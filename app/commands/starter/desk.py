"""An agent with a tool, in Python; `AGENTS=desk:desk` in `.env` serves it."""

from pydantic_ai import Agent, Tool

ORDERS = {"1017": "on its way, arrives on Friday", "1018": "waits for a lamp"}


def order_status(number: str) -> str:
    """What has become of an order.

    Args:
        number: The number of the order, four digits.
    """
    return ORDERS.get(number, "there is no such order")


desk = Agent(
    None,  # the model is Mnemosine's: DEFAULT_MODEL
    instructions="You tell customers what has become of their orders. Look orders up with your tool.",
    description="Looks orders up.",
    # It looks at the world and changes nothing. `pure`, `read` or `write`; who says nothing counts as `write`.
    tools=[Tool(order_status, metadata={"effect": "read"})],
    # What it read is good for a minute. Without this line, answers for which it looked something up are not kept.
    metadata={"mnemosine": {"cache": {"ttl": 60}}},
)
