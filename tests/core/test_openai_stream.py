"""Streams as they should not be, read by us and by Pydantic AI on the SDK: the same text, response and error."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai import Agent, AgentRunResultEvent, ModelSettings
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from app.core.direct_run import DirectAgent
from app.core.openai_chat import PROFILE, LeanChatModel, ProviderHttp
from app.core.text_stream import text_of

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8) | st.sampled_from(
    [
        "<think>",
        "</think>",
        "<thi",
        "nk>",
        "\n",
        " ",
        "\u2028",
        "\\",
        '"',
        "\ud83d\ude00",
        "x" * 300,
        "data: ",
        '"content":"',
    ]
)
CHUNKS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    TEXTS.map(lambda text: {"content": text}),
    TEXTS.map(lambda text: {"content": text}),
    TEXTS.map(lambda text: {"content": text}),
    st.sampled_from(
        [
            {"role": "assistant", "content": "", "refusal": None},
            {"role": "assistant", "content": None},
            {"content": None},
            {},
            {"content": [{"type": "text", "text": "parts"}]},
            {"refusal": "no"},
            {"reasoning_content": "because"},
            {"annotations": [{"type": "file"}]},
            {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "x", "arguments": "{}"}}]},
        ]
    ),
)  # fmt: skip
FINISHES = st.sampled_from(["stop", "stop", "length", "content_filter", "tool_calls", "odd", None])
USAGES = st.sampled_from(
    [
        {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        {
            "prompt_tokens": 9,
            "completion_tokens": 2,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
        {"prompt_tokens": "many"},
        None,
    ]
)
CHANGES = st.dictionaries(
    st.sampled_from(
        ["model", "id", "service_tier", "created", "obfuscation", "system_fingerprint", "error", "choices"]
    ),
    st.sampled_from(["other", None, 7, [], {"message": "broken", "code": "server_error"}]),
    max_size=1,
)
EVENTS: list[bytes] = [
    b": a comment\n\n",
    b"event: message\n",
    b"id: 7\n\n",
    b"\n",
    b"data: not json\n\n",
    b"data: \xff\n\n",
    b"data: [DONE]\n\n",
    b'data: {"error": {"message": "overloaded", "code": 503}}\n\n',
    b"data:\n\n",
]

_DIFFERS = re.compile(r'position \d+|"(timestamp|conversation_id)": "[^"]*"|"cost": "0\.0+"')  # 0.00 is 0.000
"""In an error: positions are in a line there, in an event here."""


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], bool]:
    """The body of a streamed answer in the pieces in which it arrives, and whether it ends in order."""
    events: list[bytes] = []
    line_end = draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\r"]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    odd_places = draw(st.lists(st.integers(0, 12), max_size=2))

    def chunk(choices: list[Any], usage: Any = None) -> None:
        data: dict[str, Any] = {"id": "a", "object": "chat.completion.chunk", "created": 5, "model": "gpt-4o-mini"}
        data |= {"choices": choices, "usage": usage}
        if len(events) in odd_places:
            data |= draw(CHANGES)
            if draw(st.booleans()):
                events.append(draw(st.sampled_from(EVENTS)))
        written = json.dumps(data, separators=separators, ensure_ascii=draw(st.booleans()))
        events.append(f"data: {written}{line_end}{line_end}".encode("utf-8", "surrogatepass"))

    for delta in draw(st.lists(CHUNKS, max_size=12)):
        chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])
    finish = draw(FINISHES)
    chunk([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish}])
    chunk([], draw(USAGES))
    events.append(f"data: [DONE]{line_end}{line_end}".encode())
    body = b"".join(events)
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=6)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    ends_in_order = draw(st.booleans()) or draw(st.booleans())
    kept = pieces if ends_in_order else pieces[: draw(st.integers(0, len(pieces)))]
    return [piece for piece in kept if piece], ends_in_order


class World:
    """A provider that plays `pieces`, Pydantic AI's model and ours."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.pieces: list[bytes] = []
        self.ends_in_order = True
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.http = ProviderHttp()
        url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"
        self.provider = OpenAIProvider(base_url=url, api_key="sk-canary")
        self.theirs = OpenAIChatModel("gpt-4o-mini", provider=self.provider, profile=PROFILE)
        self.ours = LeanChatModel(OpenAIChatModel("gpt-4o-mini", provider=self.provider), self.http)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for piece in self.pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(0)
        if self.ends_in_order:
            writer.write(b"0\r\n\r\n")
        writer.close()

    async def close(self) -> None:
        self.server.close()
        await self.http.aclose()
        await self.provider.client.close()

    async def told(self, stream: tuple[list[bytes], bool]) -> list[Any]:
        """What Pydantic AI, its graph on our model, and the direct tier make of `stream`."""
        self.pieces, self.ends_in_order = stream
        return [
            await said(self._by_graph(self.theirs)),
            await said(self._by_graph(self.ours)),
            await said(self._directly()),
        ]

    async def _by_graph(self, model: OpenAIChatModel) -> AsyncIterator[Any]:
        chosen = ModelSettings(max_retries=0)
        agent = Agent(model, retries=0)
        async with agent.run_stream_events("hello", run_id="r", model_settings=chosen) as events:
            async for event in events:
                yield event.result if isinstance(event, AgentRunResultEvent) else text_of(event)

    async def _directly(self) -> AsyncIterator[Any]:
        texts: list[str] = []
        agent = DirectAgent(Agent(self.ours, retries=0), self.ours)
        try:
            result = await agent.stream(
                "hello",
                lambda event: texts.append(text_of(event)),
                run_id="r",
                model_settings=ModelSettings(max_retries=0),
            )
        finally:
            for text in texts:
                yield text
        yield result


async def said(run: AsyncIterator[Any]) -> Any:
    texts: list[str] = []
    try:
        result: Any = None
        async for item in run:
            if isinstance(item, str):
                texts.append(item)
            else:
                result = item
    except Exception as error:  # whatever it is, it must be the same
        return "".join(texts), type(error).__name__, _DIFFERS.sub("", str(error))
    messages = json.loads(ModelMessagesTypeAdapter.dump_json(result.all_messages()))
    for message in messages:
        for key in ("timestamp", "conversation_id"):
            message.pop(key, None)
        for part in message["parts"]:
            part.pop("timestamp", None)
        if "usage" in message:
            message["usage"]["cost"] = float(message["usage"]["cost"] or 0)  # 0.00 is 0.000
    return "".join(texts), messages, result.usage, result.output


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.runner.run(world.close())
    world.runner.close()


@pytest.mark.filterwarnings("ignore")  # Pydantic and Pydantic AI remark on values that are not what they should be.
@settings(max_examples=150, deadline=None)
@given(stream=streams())
def test_any_stream_is_read_as_pydantic_ai_reads_it(world: World, stream: tuple[list[bytes], bool]) -> None:
    theirs, by_graph, directly = world.runner.run(world.told(stream))
    assert by_graph == theirs
    assert directly == theirs


def test_a_chunk_that_is_no_object_is_the_providers_failure(world: World) -> None:
    """Pydantic AI stumbles over it with an AttributeError."""
    theirs, *ours = world.runner.run(world.told(([b"data: 7\n\n", b"data: [DONE]\n\n"], True)))
    assert theirs[1] == "AttributeError"
    assert [kind for _, kind, _ in ours] == ["ModelAPIError", "ModelAPIError"]
