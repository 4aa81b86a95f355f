"""Agents for the suites: one with a tool that the server runs, one that answers in a shape of its own."""

from pydantic import BaseModel
from pydantic_ai import Agent, Tool


def weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


class Ticket(BaseModel):
    """What an agent with an output schema gives."""

    title: str
    urgent: bool


meteorologist = Agent(None, name="meteorologist", tools=[Tool(weather, metadata={"effect": "pure"})])
clerk = Agent(None, name="clerk", output_type=Ticket)
