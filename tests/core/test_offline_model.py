"""The built-in model answers in every shape that an agent may want, plain and streamed."""

from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, PromptedOutput, StructuredDict

from app.core.offline_model import OfflineModel


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: Annotated[int, Field(multiple_of=3, ge=4)]


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Everything(BaseModel):
    """What Pydantic writes schemas for."""

    maybe: str | None
    share: Annotated[float, Gt(0), Lt(1)]
    below: Annotated[int, Lt(-5)]
    between: Annotated[int, Ge(10), Lt(11)]
    pair: tuple[int, str]
    several: Annotated[list[date], Field(min_length=2)]
    moment: datetime
    name: UUID
    pet: Cat | Dog = Field(discriminator="kind")
    counts: dict[str, int]


LISTED = StructuredDict(
    {
        "type": "object",
        "properties": {
            "a": {"type": ["string", "null"]},
            "b": {"type": ["null", "integer"]},
            "c": {"type": ["array", "null"], "minItems": 1, "items": {"type": ["object", "null"]}},
        },
        "required": ["a", "b", "c"],
    },
    name="listed",
)
WANTED = [Everything, list[Everything], Cat | Dog, LISTED, bool, NativeOutput(Everything), PromptedOutput(LISTED)]


@pytest.mark.parametrize("wanted", WANTED, ids=repr)
async def test_every_shape_is_answered_at_the_first_try(wanted: Any) -> None:
    agent = Agent(OfflineModel(), output_type=wanted, retries=0)
    plain = await agent.run("Hi")
    async with agent.run_stream("Hi") as stream:
        streamed = await stream.get_output()
    assert streamed == plain.output
    assert plain.usage.requests == 1
    if wanted is LISTED:
        assert plain.output == {"a": "", "b": None, "c": [{}]}
    if wanted is Everything:
        assert (plain.output.maybe, plain.output.below, plain.output.between) == ("", -6, 10)
        assert plain.output.pet == Cat(lives=6)
