"""The lean chat model against Pydantic AI's own: the same bytes out, the same answers and errors in."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai import Agent, ModelSettings
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, ModelTimeoutError, UnexpectedModelBehavior
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from app.core.openai_chat import PROFILE, LeanChatModel, ProviderHttp, is_covered
from app.core.text_stream import text_of
from benchmarks.fake_provider import FAULTS, FakeProvider, Fault

SETTINGS: list[ModelSettings] = [
    {},
    {"temperature": 0.3, "max_tokens": 7, "seed": 3, "stop_sequences": ["ä"], "top_p": 0.5, "max_retries": 0},
    {"extra_body": {"x": [1, None]}, "extra_headers": {"X-Trace": "1"}, "logit_bias": {"5": -1}, "max_retries": 0},
    {"timeout": 9, "presence_penalty": 0.5, "frequency_penalty": -0.5, "parallel_tool_calls": False, "max_retries": 0},
]


@pytest.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as provider:
        yield provider


@pytest.fixture
async def pair(fake: FakeProvider) -> AsyncIterator[tuple[OpenAIChatModel, LeanChatModel]]:
    """Pydantic AI's model and ours, on the same provider."""
    http = ProviderHttp(first_byte_s=1.0, gap_s=0.5)
    provider = OpenAIProvider(base_url=fake.base_url, api_key="sk-canary")
    theirs = OpenAIChatModel("gpt-4o-mini", provider=provider, profile=PROFILE)
    plain = OpenAIChatModel("gpt-4o-mini", provider=provider)
    assert is_covered(plain)
    yield theirs, LeanChatModel(plain, http)
    await http.aclose()
    await provider.client.close()


def agent_on(model: Model[Any]) -> Agent[None, str]:
    agent = Agent(model, instructions="Be short, and kind: ü.")

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"rain in {city}"

    return agent


def told(result: Any) -> Any:
    """What a run says, without what differs between any two runs."""
    messages = json.loads(result.all_messages_json())
    for message in messages:
        for key in ("timestamp", "run_id", "conversation_id", "provider_response_id"):
            message.pop(key, None)
        for part in message["parts"]:
            part.pop("timestamp", None)
    return messages, result.usage, result.output


@pytest.mark.parametrize("settings", SETTINGS)
async def test_both_send_the_same_bytes_and_say_the_same(
    fake: FakeProvider, pair: tuple[OpenAIChatModel, LeanChatModel], settings: ModelSettings
) -> None:
    theirs, ours = [await agent_on(model).run("Grüße", model_settings=settings) for model in pair]
    assert told(theirs) == told(ours)
    their_call, our_call = fake.requests
    assert json.dumps(their_call.body) == json.dumps(our_call.body)
    relevant = {"authorization", "content-type", "user-agent", "x-trace", "x-stainless-read-timeout", "accept"}
    assert {k: v for k, v in their_call.headers.items() if k in relevant} == {
        k: v for k, v in our_call.headers.items() if k in relevant
    }


async def test_both_stream_the_same(fake: FakeProvider, pair: tuple[OpenAIChatModel, LeanChatModel]) -> None:
    said: list[Any] = []
    for model in pair:
        async with agent_on(model).run_stream("Grüße", model_settings={"max_retries": 0}) as result:
            texts = [text async for text in result.stream_text(delta=True, debounce_by=None)]
        # What is there at once may come as one.
        told = "".join(texts)
        said.append((told, result.usage, result.response.finish_reason, result.response.provider_details))
    assert said[0] == said[1]
    assert json.dumps(fake.requests[0].body) == json.dumps(fake.requests[1].body)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("hang", "drip")])
async def test_both_fail_alike(pair: tuple[OpenAIChatModel, LeanChatModel], fault: Fault) -> None:
    kinds: list[type[BaseException] | None] = []
    for model in pair:
        try:
            await agent_on(model).run(f"fault:{fault}", model_settings={"max_retries": 0})
        except (ModelAPIError, UnexpectedModelBehavior) as error:
            kinds.append(None if "sk-canary" in str(error) else type(error))
        else:
            kinds.append(None)
    assert kinds[0] is kinds[1]
    assert (kinds[0] is None) == fault.startswith("stream-")


@pytest.mark.parametrize("fault", ["stream-no-finish", "stream-cut", "cut"])
async def test_a_cut_stream_is_never_complete(pair: tuple[OpenAIChatModel, LeanChatModel], fault: Fault) -> None:
    async with pair[1].request_stream(*await _request(f"fault:{fault}")) as stream:
        with pytest.raises(ModelAPIError):
            async for _ in stream:
                pass
    assert stream.get().state != "complete"


async def test_without_the_switch_a_cut_stream_counts_as_complete(fake: FakeProvider) -> None:
    """The positive control of the test above: Pydantic AI's default believes the provider."""
    async with OpenAIProvider(base_url=fake.base_url, api_key="sk-canary") as provider:
        model = OpenAIChatModel("gpt-4o-mini", provider=provider)
        async with model.request_stream(*await _request("fault:stream-no-finish")) as stream:
            async for _ in stream:
                pass
        assert stream.get().state == "complete"


async def test_silence_is_a_timeout_and_the_next_call_succeeds(
    fake: FakeProvider, pair: tuple[OpenAIChatModel, LeanChatModel]
) -> None:
    with pytest.raises(ModelAPIError):
        await agent_on(pair[1]).run("fault:hang", model_settings={"timeout": 0.2, "max_retries": 0})
    assert (await agent_on(pair[1]).run("hello")).output
    assert fake.calls == 2


async def test_silence_in_the_middle_of_a_stream_is_a_timeout(
    fake: FakeProvider, pair: tuple[OpenAIChatModel, LeanChatModel]
) -> None:
    fake.chunk_gap_s = 30
    said = ""

    async def listen() -> None:
        nonlocal said
        async with pair[1].request_stream(*await _request("hello")) as stream:
            async for event in stream:
                said += text_of(event)

    with pytest.raises(ModelTimeoutError):
        await listen()
    assert said
    await fake.until(lambda: fake.open_streams == 0)


@pytest.mark.parametrize("length", [1, 40_000, 1_000_000])
async def test_a_body_arrives_whole_however_long_it_is(
    fake: FakeProvider, pair: tuple[OpenAIChatModel, LeanChatModel], length: int
) -> None:
    await Agent(pair[1]).run("x" * length)
    assert len(fake.requests[0].body["messages"][0]["content"]) == length


async def test_whoever_is_cancelled_leaves_the_provider(
    fake: FakeProvider, pair: tuple[OpenAIChatModel, LeanChatModel]
) -> None:
    task = asyncio.create_task(agent_on(pair[1]).run("fault:hang"))
    await fake.until(lambda: fake.calls == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await fake.until(lambda: fake.in_flight == 0)


async def test_a_refused_connection_is_a_connection_error(pair: tuple[OpenAIChatModel, LeanChatModel]) -> None:
    http = ProviderHttp()
    async with OpenAIProvider(base_url="http://127.0.0.1:1/v1", api_key="sk-canary") as provider:
        model = LeanChatModel(OpenAIChatModel("gpt-4o-mini", provider=provider), http)
        with pytest.raises(ModelAPIError) as caught:
            await agent_on(model).run("hello")
    assert not isinstance(caught.value, ModelHTTPError)
    await http.aclose()


async def _request(prompt: str) -> Any:
    from pydantic_ai import ModelRequest
    from pydantic_ai.models import ModelRequestParameters

    return [ModelRequest.user_text_prompt(prompt)], {"max_retries": 0}, ModelRequestParameters()
