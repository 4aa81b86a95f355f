"""`/v1/models` and `/v1/chat/completions` by OpenAI's own client."""

import json
from base64 import b64encode
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from tests.wire.conftest import Wire

TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "where_am_i",
        "description": "Where the user is.",
        "parameters": {"type": "object", "properties": {"exact": {"type": "boolean"}}, "required": ["exact"]},
    },
}
PIXEL = "data:image/png;base64," + b64encode(b"\x89PNG\r\n\x1a\n not much of a picture").decode()


class City(BaseModel):
    name: str


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


async def test_every_agent_is_a_model(client: AsyncOpenAI) -> None:
    models = [model async for model in client.models.list()]
    assert [model.id for model in models] == ["clerk", "default", "meteorologist"]
    one = await client.models.retrieve("default")
    assert one in models
    with pytest.raises(openai.NotFoundError) as refused:
        await client.models.retrieve("nobody")
    assert refused.value.code == "model_not_found"


async def test_a_chat_is_answered(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="default", messages=user("nonce:plain"), temperature=0.3)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "default"
    assert answer.system_fingerprint
    (choice,) = answer.choices
    assert "nonce:plain" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_a_stream_says_the_same_with_its_usage_at_the_end(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="default", messages=user("nonce:streamed"), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert len([text for text in texts if text]) > 3
    assert "nonce:streamed" in "".join(text or "" for text in texts)
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])
    plain = await client.chat.completions.with_raw_response.create(model="default", messages=user("nonce:streamed"))
    assert plain.headers["x-cache"] == "HIT"
    answer = plain.parse()
    assert answer.choices[0].message.content == "".join(text or "" for text in texts)
    assert answer.usage == chunks[-1].usage


async def test_usage_stays_away_unless_it_is_asked_for(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="default", messages=user("hello"), stream=True)
    assert [chunk.usage async for chunk in stream if chunk.usage] == []


async def test_what_was_said_before_reaches_the_model(client: AsyncOpenAI, wire: Wire) -> None:
    talk: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": [{"type": "text", "text": "Who am I?"}, {"type": "text", "text": "nonce:turns"}]},
    ]
    calls = wire.provider.stats()["calls"]
    answer = await client.chat.completions.create(model="default", messages=talk)
    assert "nonce:turns" in (answer.choices[0].message.content or "")
    talk[1] = {"role": "user", "content": "My name is Grace."}
    await client.chat.completions.create(model="default", messages=talk)
    assert wire.provider.stats()["calls"] == calls + 2, "another history is another question"
    await client.chat.completions.create(model="default", messages=talk)
    assert wire.provider.stats()["calls"] == calls + 2, "the same talk is the same question"


async def test_an_answer_has_the_shape_that_is_asked_for(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(model="default", messages=user("a city"), response_format=City)
    assert answer.choices[0].message.parsed is not None
    assert "a city" in answer.choices[0].message.parsed.name
    loose = await client.chat.completions.create(
        model="default", messages=user("anything"), response_format={"type": "json_object"}
    )
    assert loose.choices[0].message.content == "{}"


async def test_a_streamed_shape_arrives_whole(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model="default", messages=user("another city"), response_format=City
    ) as stream:
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.parsed is not None
    assert "another city" in answer.choices[0].message.parsed.name


async def test_an_agent_with_a_shape_of_its_own_answers_in_json(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="clerk", messages=user("it broke"))
    assert '"urgent":false' in (answer.choices[0].message.content or "")
    stream = await client.chat.completions.create(model="clerk", messages=user("it broke"), stream=True)
    texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(texts) == answer.choices[0].message.content
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(
            model="clerk", messages=user("it broke"), response_format={"type": "json_object"}
        )
    assert refused.value.param == "response_format"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_of_the_client_is_called_by_the_client(client: AsyncOpenAI, *, streamed: bool) -> None:
    talk = user('call:where_am_i {"exact": true}')
    message: dict[str, Any]
    if streamed:
        async with client.chat.completions.stream(model="default", messages=talk, tools=[TOOL]) as stream:
            answer = await stream.get_final_completion()
    else:
        answer = await client.chat.completions.create(model="default", messages=talk, tools=[TOOL])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("where_am_i", {"exact": True})
    message = choice.message.model_dump(exclude_none=True)
    message.pop("parsed", None)
    talk.append(message)  # pyright: ignore[reportArgumentType] - as every client does it
    talk.append({"role": "tool", "tool_call_id": call.id, "content": "in Rome"})
    final = await client.chat.completions.create(model="default", messages=talk, tools=[TOOL])
    assert "in Rome" in (final.choices[0].message.content or "")
    assert final.choices[0].finish_reason == "stop"


async def test_a_tool_must_be_called_where_the_client_says_so(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="default", messages=user("hello"), tools=[TOOL], tool_choice="required"
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        await client.chat.completions.create(
            model="default",
            messages=user("hello"),
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "another"}},
        )
    assert refused.value.param == "tool_choice"


async def test_a_tool_of_the_server_stays_invisible(client: AsyncOpenAI) -> None:
    talk = user('call:weather {"city": "Paris"}')
    answer = await client.chat.completions.create(model="meteorologist", messages=talk)
    assert "rain in Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].message.tool_calls is None
    stream = await client.chat.completions.create(
        model="meteorologist", messages=talk, stream=True, extra_headers={"Cache-Control": "no-store"}
    )
    chunks = [chunk async for chunk in stream]
    assert not any(choice.delta.tool_calls for chunk in chunks for choice in chunk.choices)
    assert "rain in Paris" in "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def test_a_picture_travels_in_the_request_and_is_never_fetched(client: AsyncOpenAI) -> None:
    def show(url: str) -> list[ChatCompletionMessageParam]:
        parts: Any = [{"type": "text", "text": "nonce:seen"}, {"type": "image_url", "image_url": {"url": url}}]
        return [{"role": "user", "content": parts}]

    answer = await client.chat.completions.create(model="default", messages=show(PIXEL))
    assert "nonce:seen" in (answer.choices[0].message.content or "")
    with pytest.raises(openai.BadRequestError, match="fetches no URL") as refused:
        await client.chat.completions.create(model="default", messages=show("http://127.0.0.1:1/cat.png"))
    assert refused.value.param == "messages.0.content.1.image_url.url"
    with pytest.raises(openai.UnprocessableEntityError, match="base64"):
        await client.chat.completions.create(model="default", messages=show("data:image/png;base64,%%%"))


@pytest.mark.parametrize(
    "unwanted",
    [
        {"n": 2},
        {"logprobs": True},
        {"logit_bias": {"50256": -100}},
        {"presence_penalty": 0.5},
        {"reasoning_effort": "high"},
        {"modalities": ["text", "audio"]},
        {"functions": [{"name": "old"}]},
        {"web_search_options": {}},
        {"top_k": 4},
    ],
    ids=lambda unwanted: next(iter(unwanted)),
)
def test_what_would_change_the_answer_is_refused_by_name(wire: Wire, unwanted: dict[str, Any]) -> None:
    body = {"model": "default", "messages": user("hello"), **unwanted}
    reply = wire.post("/v1/chat/completions", body)
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", next(iter(unwanted)))
    assert error["code"] == "unsupported_parameter"


def test_what_changes_nothing_is_accepted(wire: Wire) -> None:
    harmless = {
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0,
        "logit_bias": {},
        "modalities": ["text"],
        "user": "ada",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "seed": 1,
        "parallel_tool_calls": True,
        "audio": None,
        "top_logprobs": None,
    }
    reply = wire.post("/v1/chat/completions", {"model": "default", "messages": user("hello"), **harmless})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "clown", "content": "hi"}], "messages.0.role"),
        ([{"role": "assistant", "content": "I have the last word"}], "messages"),
        ([{"role": "system", "content": "only rules"}], "messages"),
        ([{"role": "tool", "tool_call_id": "call_1", "content": "of no call"}], "messages"),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}], "messages.1.tool_call_id"),
        ([{"role": "user", "content": "nul \x00"}], "messages.0.content.constrained-str"),
    ],
)
def test_messages_that_lead_nowhere_are_refused_by_name(wire: Wire, messages: Any, param: str) -> None:
    reply = wire.post("/v1/chat/completions", {"model": "default", "messages": messages})
    assert reply.status_code == 422, reply.text
    named = reply.json()["error"]["param"]
    assert named == param or named.startswith("messages.0.content.")


async def test_the_errors_of_a_bad_key_and_of_an_unknown_model(wire: Wire, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as nobody:
        await client.with_options(api_key="sk-wrong").chat.completions.create(model="default", messages=user("hi"))
    assert nobody.value.type == "authentication_error"
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="nobody", messages=user("hi"), stream=True)
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")


async def test_a_limit_is_a_rate_limit_error_that_says_when(wire: Wire, client: AsyncOpenAI) -> None:
    key = wire.new_key(requests_per_minute=1)
    limited = client.with_options(api_key=key)
    good = await limited.chat.completions.with_raw_response.create(model="default", messages=user("hi"))
    assert good.headers["x-ratelimit-limit-requests"] == "1"
    assert good.headers["x-request-id"]
    with pytest.raises(openai.RateLimitError) as refused:
        await limited.chat.completions.create(model="default", messages=user("hi"), stream=True)
    assert refused.value.type == "rate_limit_error"
    assert float(refused.value.response.headers["retry-after-ms"]) > 0
    assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("fault", "status"), [("hang", 504), ("500", 502), ("429", 429)])
async def test_a_provider_that_fails_before_its_first_word_is_a_status(
    client: AsyncOpenAI, fault: str, status: int, *, streamed: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as failed:
        await client.chat.completions.create(model="default", messages=user(f"fault:{fault}"), stream=streamed)
    assert failed.value.status_code == status


@pytest.mark.parametrize("fault", ["stream-cut", "stream-no-finish"])
async def test_a_provider_that_breaks_off_is_an_error_in_the_stream(client: AsyncOpenAI, fault: str) -> None:
    stream = await client.chat.completions.create(model="default", messages=user(f"fault:{fault}"), stream=True)
    texts: list[str] = []

    async def read() -> None:
        texts.extend([chunk.choices[0].delta.content or "" async for chunk in stream])

    with pytest.raises(openai.APIError, match="openai"):
        await read()
    again = await client.chat.completions.with_raw_response.create(model="default", messages=user(f"fault:{fault}"))
    assert again.headers["x-cache"] == "MISS", "what was cut is never kept"
