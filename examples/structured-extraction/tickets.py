"""Tickets of complaints: one complaint a line on standard input, one ticket a line, as JSON, on standard output.

It knows the server by `MNEMOSINE_URL` (http://127.0.0.1:8000) and a key in `MNEMOSINE_TOKEN`.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel


class Ticket(BaseModel):
    """What the agent's `output_schema` says, as Python knows it."""

    subject: str
    priority: Literal["low", "normal", "high"]


def tickets(client: OpenAI, complaints: Iterable[str]) -> Iterator[Ticket]:
    """One ticket for each complaint, in their order."""
    for complaint in complaints:
        answer = client.chat.completions.create(model="ticket", messages=[{"role": "user", "content": complaint}])
        yield Ticket.model_validate_json(answer.choices[0].message.content or "")


if __name__ == "__main__":
    url = os.environ.get("MNEMOSINE_URL", "http://127.0.0.1:8000")
    server = OpenAI(base_url=f"{url}/v1", api_key=os.environ["MNEMOSINE_TOKEN"])
    for ticket in tickets(server, filter(None, map(str.strip, sys.stdin))):
        print(ticket.model_dump_json(), flush=True)
