"""What is kept and under which name: every ingredient of a question, and what an agent's tools did."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai import Agent, ModelMessage, ModelRequest, ModelResponse, TextPart
from pydantic_ai.messages import SystemPromptPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.usage import RequestUsage

from app.core.agent_options import AgentOptions, CacheOptions
from app.core.agents import AgentDefinition
from app.core.cache_key import fewest_differing
from app.core.cache_policy import is_storable, key_of, may_be_shared_in_flight, ttl_of
from app.core.run import Caller, ClientTool, Image, OutputSchema, Question, RunSettings

ANNA = Caller("1", "anna", "user")
BEN = Caller("2", "ben", "user")
PLAIN = AgentDefinition(name="plain", model="offline", instructions="Be brief.")
SHARED = AgentDefinition(
    name="plain", model="offline", instructions="Be brief.", options=AgentOptions(cache=CacheOptions(scope="shared"))
)
BASE = Question("Hello", agent="plain")
ENDPOINTS = ["offline@"]


def history(*, at: int = 1, call_id: str = "a", answer: str = "sunny") -> tuple[ModelMessage, ...]:
    then = datetime.fromtimestamp(at, UTC)
    return (
        ModelRequest([UserPromptPart("Weather?", timestamp=then)], timestamp=then, run_id=f"run-{at}"),
        ModelResponse(
            [ToolCallPart("weather", {"city": "Bonn", "id": 7}, tool_call_id=call_id)],
            timestamp=then,
            usage=RequestUsage(input_tokens=at),
            provider_response_id=f"r{at}",
        ),
        ModelRequest([ToolReturnPart("weather", answer, tool_call_id=call_id, timestamp=then)]),
        ModelResponse([TextPart(f"It is {answer}.")], model_name=f"m{at}", timestamp=then),
    )


TOOL = ClientTool("look", "Looks.", {"type": "object"})
CHANGES: dict[str, dict[str, Any]] = {
    "message": {"message": "Hello!"},
    "images": {"images": (Image(b"png", "image/png"),)},
    "other bytes of an image": {"images": (Image(b"gnp", "image/png"),)},
    "history": {"history": history()},
    "history with another result": {"history": history(answer="rainy")},
    "instructions": {"instructions": "Answer in verse."},
    "temperature": {"settings": RunSettings(temperature=0.1)},
    "max_tokens": {"settings": RunSettings(max_tokens=9)},
    "top_p": {"settings": RunSettings(top_p=0.5)},
    "seed": {"settings": RunSettings(seed=1)},
    "stop": {"settings": RunSettings(stop=("x",))},
    "client tools": {"client_tools": (TOOL,)},
    "another description of a tool": {"client_tools": (replace(TOOL, description="Sees."),)},
    "tool choice": {"client_tools": (TOOL,), "tool_choice": "required"},
    "output schema": {"output_schema": OutputSchema("place", {"type": "object"})},
    "another output schema": {"output_schema": OutputSchema("place", {"type": "object", "title": "x"})},
    "any JSON": {"output_schema": "json"},
}


def digest(caller: Caller = ANNA, definition: AgentDefinition = PLAIN, **changes: Any) -> bytes:
    return key_of(caller, definition, ENDPOINTS, replace(BASE, **changes)).digest


def test_everything_that_determines_an_answer_alone_changes_its_key() -> None:
    digests = [digest(), *(digest(**change) for change in CHANGES.values())]
    digests += [
        digest(BEN),
        digest(definition=AgentDefinition(name="plain", model="offline", instructions="Be long.")),
        digest(definition=AgentDefinition(name="other", model="offline", instructions="Be brief.")),
        key_of(ANNA, PLAIN, ["offline@elsewhere"], BASE).digest,
        key_of(ANNA, PLAIN, ["offline@", "openai-chat:x@"], BASE).digest,
    ]
    assert len(set(digests)) == len(digests)


def test_what_names_only_one_run_does_not_change_the_key() -> None:
    assert digest(history=history(at=1, call_id="a")) == digest(history=history(at=999, call_id="b"))
    assert digest(cache_mode="refresh", cache_ttl_s=5.0, conversation_id="c") == digest()


def test_an_id_that_is_an_argument_of_a_tool_is_content() -> None:
    def called(number: int) -> tuple[ModelMessage, ...]:
        return (
            ModelRequest.user_text_prompt("x"),
            ModelResponse([ToolCallPart("look", {"id": number, "timestamp": number}, tool_call_id="c")]),
        )

    assert digest(history=called(1)) != digest(history=called(2))


callers = st.builds(Caller, st.text("abc:/", min_size=1, max_size=4), st.just("name"), st.just("user"))
questions = st.builds(
    Question,
    st.text(max_size=5),
    instructions=st.none() | st.text(max_size=3),
    settings=st.builds(RunSettings, seed=st.none() | st.integers(0, 2)),
)


@given(callers, callers, questions, questions)
def test_no_two_users_share_a_key_unless_the_agent_says_so(
    one: Caller, other: Caller, question: Question, second: Question
) -> None:
    if one.id != other.id:
        assert key_of(one, PLAIN, ENDPOINTS, question).digest != key_of(other, PLAIN, ENDPOINTS, second).digest
        assert key_of(one, SHARED, ENDPOINTS, question) == key_of(other, SHARED, ENDPOINTS, question)


def test_the_marks_of_a_key_tell_which_ingredient_differs() -> None:
    one = key_of(ANNA, PLAIN, ENDPOINTS, BASE).marks()
    other = key_of(BEN, PLAIN, ENDPOINTS, replace(BASE, settings=RunSettings(seed=3))).marks()
    assert fewest_differing(one, [other]) == ("scope", "settings")
    assert fewest_differing(one, [other, one]) == ()


def with_tools(**cache: Any) -> AgentDefinition:
    agent: Agent[None, str] = Agent(None, instructions="Be brief.")
    for name in ("pure", "read", "write"):
        agent.tool_plain(name=name, metadata={"effect": name})(_tool)
    agent.tool_plain(name="undeclared")(_tool)
    return AgentDefinition(
        name="tools",
        model="offline",
        instructions="Be brief.",
        prototype=agent,
        options=AgentOptions(cache=CacheOptions(**cache)),
    )


def _tool() -> str:
    """Does something."""
    return "done"


def run_with(tool: str) -> list[ModelMessage]:
    return [
        ModelRequest.user_text_prompt("x", instructions="Be brief."),
        ModelResponse([ToolCallPart(tool, {}, tool_call_id="c")], finish_reason="tool_call"),
        ModelRequest([ToolReturnPart(tool, "done", tool_call_id="c")], instructions="Be brief."),
        ModelResponse([TextPart("So it is.")], finish_reason="stop"),
    ]


@pytest.mark.parametrize(
    ("tool", "ttl", "kept"),
    [
        ("pure", None, True),
        ("read", None, False),
        ("read", 60, True),
        ("write", 60, False),
        ("undeclared", 60, False),
        ("never heard of", 60, False),
    ],
)
def test_a_run_is_kept_by_what_its_tools_did(tool: str, ttl: float | None, kept: bool) -> None:
    assert is_storable(run_with(tool), with_tools(ttl=ttl), BASE) is kept


def answered(**changes: Any) -> list[ModelMessage]:
    response = ModelResponse([TextPart("Hi.")], finish_reason="stop")
    return [ModelRequest.user_text_prompt("x", instructions="Be brief."), replace(response, **changes)]


def test_a_plain_answer_is_kept() -> None:
    assert is_storable(answered(), PLAIN, BASE)


@pytest.mark.parametrize("finish_reason", [None, "length", "content_filter", "error"])
def test_what_the_provider_did_not_call_complete_is_not_kept(finish_reason: Any) -> None:
    assert not is_storable(answered(finish_reason=finish_reason), PLAIN, BASE)


def test_instructions_that_were_made_for_one_run_are_not_in_the_key_so_their_answer_is_not_kept() -> None:
    messages = answered()
    messages[0] = ModelRequest.user_text_prompt("x", instructions="Be brief. It is noon.")
    assert not is_storable(messages, PLAIN, BASE)
    messages[0] = ModelRequest([SystemPromptPart("now"), UserPromptPart("x")], instructions="Be brief.")
    assert not is_storable(messages, PLAIN, BASE)
    added = replace(BASE, instructions="In verse.")
    messages[0] = ModelRequest.user_text_prompt("x", instructions="Be brief.\n\nIn verse.")
    assert is_storable(messages, PLAIN, added)


def test_no_caller_extends_what_an_agent_allows_to_be_read_of_the_world() -> None:
    reading = with_tools(ttl=60)
    assert ttl_of(reading, replace(BASE, cache_ttl_s=3600)) == 60
    assert ttl_of(reading, replace(BASE, cache_ttl_s=5)) == 5
    assert ttl_of(PLAIN, replace(BASE, cache_ttl_s=3600)) == 3600
    assert ttl_of(PLAIN, BASE) is None


def test_what_may_act_twice_is_never_asked_once_for_two() -> None:
    assert may_be_shared_in_flight(PLAIN)
    assert not may_be_shared_in_flight(with_tools())
