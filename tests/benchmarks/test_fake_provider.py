"""The fake provider speaks to the official client, predicts its answers, and fails exactly as asked."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionToolUnionParam

from benchmarks.fake_answers import least_value
from benchmarks.fake_provider import FAULTS, FakeProvider, Fault

WEATHER: ChatCompletionToolUnionParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
FINAL_RESULT: ChatCompletionToolUnionParam = {
    "type": "function",
    "function": {
        "name": "final_result",
        "parameters": {
            "type": "object",
            "properties": {"title": {"type": "string"}, "stars": {"type": "integer", "minimum": 1}},
            "required": ["title", "stars"],
        },
    },
}


@pytest.fixture
async def fake() -> AsyncGenerator[FakeProvider]:
    async with FakeProvider() as fake:
        yield fake


@pytest.fixture
async def client(fake: FakeProvider) -> AsyncGenerator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=fake.base_url, api_key="sk-test", max_retries=0, timeout=5) as client:
        yield client


async def ask(client: AsyncOpenAI, prompt: str, **options: Any) -> Any:
    create: Any = client.chat.completions.create
    return await create(**{"model": "fake-1", "messages": [{"role": "user", "content": prompt}], **options})


async def streamed_text(client: AsyncOpenAI, prompt: str, **options: Any) -> str:
    stream = await ask(client, prompt, stream=True, **options)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


@asynccontextmanager
async def raw_request(
    fake: FakeProvider, prompt: str, **options: Any
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}], **options}).encode()
    reader, writer = await asyncio.open_connection(fake.host, fake.port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def raw_answer(fake: FakeProvider, prompt: str, **options: Any) -> bytes:
    async with raw_request(fake, prompt, **options) as (reader, _):
        return await asyncio.wait_for(reader.read(-1), timeout=5)


async def test_an_answer_carries_the_nonce_of_its_prompt(client: AsyncOpenAI) -> None:
    answers = await asyncio.gather(*(ask(client, f"please nonce:n-{number} thanks") for number in range(50)))
    for number, answer in enumerate(answers):
        assert f"nonce:n-{number} " in answer.choices[0].message.content


async def test_without_a_nonce_the_answer_repeats_the_prompt(client: AsyncOpenAI) -> None:
    answer = await ask(client, 'What is "love"?\n\u2603')
    assert answer.choices[0].message.content.endswith('What is "love"?\n\u2603')
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "fake-1"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 34)


async def test_a_stream_says_the_same_in_the_given_number_of_chunks(fake: FakeProvider, client: AsyncOpenAI) -> None:
    fake.chunks = 200
    stream = await ask(client, "hello nonce:7", stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    whole = await ask(client, "hello nonce:7")
    assert len(texts) == 200
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 46


async def test_a_stream_reports_no_usage_unasked(client: AsyncOpenAI) -> None:
    stream = await ask(client, "hello", stream=True)
    assert [chunk.usage async for chunk in stream if chunk.usage] == []


async def test_chunks_come_one_by_one_if_there_is_a_gap(fake: FakeProvider, client: AsyncOpenAI) -> None:
    fake.chunk_gap_s = 60
    stream = await ask(client, "hello", stream=True)
    assert (await anext(stream)).choices[0].delta.role == "assistant"
    assert fake.open_streams == 1
    await stream.close()
    await fake.until(lambda: fake.open_streams == 0)
    assert fake.disconnects == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_scripted_tool_call_and_its_result(client: AsyncOpenAI, streamed: bool) -> None:
    prompt = 'call:weather {"city": "Pátzcuaro", "near": {"km": 3}} and call:clock'
    answer: Any
    if streamed:
        async with client.chat.completions.stream(
            model="m", messages=[{"role": "user", "content": prompt}], tools=[WEATHER]
        ) as stream:
            answer = await stream.get_final_completion()
    else:
        answer = await ask(client, prompt, tools=[WEATHER])
    calls = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Pátzcuaro", "near": {"km": 3}}),
        ("clock", {}),
    ]
    after = await ask(
        client,
        prompt,
        tools=[WEATHER],
        messages=[
            {"role": "user", "content": prompt},
            {"role": "assistant", "tool_calls": [call.to_dict() for call in calls]},
            {"role": "tool", "tool_call_id": calls[0].id, "content": "21 degrees"},
            {"role": "tool", "tool_call_id": calls[1].id, "content": "noon"},
        ],
    )
    assert "21 degrees | noon" in after.choices[0].message.content


@pytest.mark.parametrize("options", [{}, {"tool_choice": "required"}], ids=["only tool", "required"])
async def test_an_output_tool_gets_the_least_valid_json(client: AsyncOpenAI, options: dict[str, str]) -> None:
    tools = [FINAL_RESULT] if not options else [WEATHER, FINAL_RESULT]
    answer = await ask(client, "nonce:42", tools=tools, **options)
    (call,) = answer.choices[0].message.tool_calls
    result = json.loads(call.function.arguments)
    assert call.function.name == "final_result"
    assert result["stars"] == 1
    assert "nonce:42" in result["title"]


async def test_a_response_format_gets_the_least_valid_json(client: AsyncOpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = await ask(
        client, "x", response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    )
    assert json.loads(answer.choices[0].message.content.rstrip(".")) == {"ok": False}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "#/$defs/A", "$defs": {"A": {"const": 5}}}, 5),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"enum": ["red", "green"]}, "red"),
        ({"type": "array", "items": {"type": "number"}, "minItems": 2}, [0, 0]),
        ({"type": "string", "minLength": 3, "maxLength": 4}, "text"),
        ({"type": "string", "format": "date"}, "2000-01-01"),
        ({"type": "integer", "exclusiveMinimum": 0}, 1),
        ({"type": "integer", "maximum": -3}, -3),
    ],
)
def test_least_value(schema: dict[str, Any], value: object) -> None:
    assert least_value(schema) == value


async def test_requests_are_recorded(fake: FakeProvider, client: AsyncOpenAI) -> None:
    await ask(client, "hello", temperature=0.5)
    (call,) = fake.requests
    assert call.body["temperature"] == 0.5
    assert call.headers["authorization"] == "Bearer sk-test"
    assert call.outcome == "answered"
    assert fake.calls == 1
    assert fake.in_flight == 0


async def test_held_answers_wait_for_the_release(fake: FakeProvider, client: AsyncOpenAI) -> None:
    fake.hold()
    asked = [asyncio.create_task(ask(client, f"nonce:{number}")) for number in range(3)]
    await fake.until(lambda: fake.calls == 3)
    assert fake.in_flight == 3
    fake.release()
    answers = await asyncio.gather(*asked)
    assert all("nonce:" in answer.choices[0].message.content for answer in answers)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("429", openai.RateLimitError),
        ("500", openai.InternalServerError),
        ("503", openai.InternalServerError),
        ("401", openai.AuthenticationError),
        ("reset", openai.APIConnectionError),
        ("cut", openai.APIConnectionError),
        ("hang", openai.APITimeoutError),
        ("drip", openai.APITimeoutError),
        ("bad-json", json.JSONDecodeError),
        ("empty", json.JSONDecodeError),
    ],
)
async def test_a_fault_reaches_the_client_as_its_error(
    fake: FakeProvider, client: AsyncOpenAI, fault: Fault, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await ask(client.with_options(timeout=0.3), f"fault:{fault}")
    await fake.until(lambda: fake.in_flight == 0)
    assert fake.disconnects == (fault in {"hang", "drip"})


async def test_too_many_requests_says_when_to_come_back(fake: FakeProvider) -> None:
    fake.retry_after_s = 7
    assert b"\r\nretry-after: 7\r\n" in await raw_answer(fake, "fault:429")


async def test_an_error_inside_a_200(fake: FakeProvider) -> None:
    for streamed in False, True:
        answer = await raw_answer(fake, "fault:error-in-200", stream=streamed)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b'{"error": {"message"' in answer


async def test_a_cut_answer_is_shorter_than_announced(fake: FakeProvider) -> None:
    head, _, body = (await raw_answer(fake, "fault:cut")).partition(b"\r\n\r\n")
    announced = int(head.split(b"content-length: ")[1])
    assert 0 < len(body) < announced


async def test_a_stream_without_a_finish_ends_in_order(fake: FakeProvider) -> None:
    answer = await raw_answer(fake, "fault:stream-no-finish", stream=True)
    assert answer.endswith(b"0\r\n\r\n")
    assert answer.count(b'"content":') > 5
    assert b'"finish_reason":"' not in answer
    assert b"[DONE]" not in answer


@pytest.mark.parametrize("fault", ["stream-cut", "cut"])
async def test_a_cut_stream_just_ends(fake: FakeProvider, client: AsyncOpenAI, fault: Fault) -> None:
    answer = await raw_answer(fake, f"fault:{fault}", stream=True)
    assert b'"content":' in answer
    assert b"0\r\n\r\n" not in answer
    with pytest.raises(openai.APIConnectionError):
        await streamed_text(client, f"fault:{fault}")


async def test_a_drip_comes_byte_by_byte(fake: FakeProvider) -> None:
    fake.drip_s = 0.001
    async with raw_request(fake, "fault:drip") as (reader, _):
        await reader.readuntil(b"\r\n\r\n")
        assert len(await reader.read(65536)) < 20


async def test_a_fault_of_the_stream_leaves_other_requests_alone(client: AsyncOpenAI) -> None:
    assert (await ask(client, "fault:stream-cut nonce:1")).choices[0].finish_reason == "stop"


async def test_the_prompt_beats_the_sequence_beats_the_instance(fake: FakeProvider) -> None:
    fake.fault = "500"
    fake.fault_sequence = ["503", None]
    statuses = [
        (await raw_answer(fake, prompt))[9:12] for prompt in ("fault:401", "first", "second", "third", "fourth")
    ]
    assert statuses == [b"401", b"503", b"200", b"500", b"500"]


async def test_an_unknown_fault_is_answered_with_the_menu(fake: FakeProvider) -> None:
    answer = (await raw_answer(fake, "fault:earthquake")).decode()
    assert answer.startswith("HTTP/1.1 400 ")
    assert all(fault in answer for fault in FAULTS)


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"messages": 5}', b'{"messages": [5]}'])
async def test_nonsense_is_refused_and_the_connection_lives_on(fake: FakeProvider, body: bytes) -> None:
    reader, writer = await asyncio.open_connection(fake.host, fake.port)
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    for _ in range(2):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
    writer.close()
    assert fake.in_flight == 0


async def test_it_serves_and_is_controlled_from_its_own_process() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.fake_provider", "--latency-ms", "1", "--chunks", "3"]
    process = await asyncio.create_subprocess_exec(*command, cwd=root, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        address = json.loads(await asyncio.wait_for(process.stdout.readline(), timeout=10))
        async with AsyncOpenAI(base_url=address["base_url"], api_key="any", max_retries=0) as client:
            assert "nonce:1" in await streamed_text(client, "nonce:1")
            await client.post("../control", cast_to=object, body={"fault": "500"})
            with pytest.raises(openai.InternalServerError):
                await ask(client, "hello")
            stats = await client.get("../stats", cast_to=dict[str, int])
        assert stats == {"calls": 2, "in_flight": 0, "open_streams": 0, "disconnects": 0}
        assert address["pid"] == process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), timeout=10) == 0
