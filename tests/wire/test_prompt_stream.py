"""`POST /api/v1/agent/prompt` with `"stream": true`, byte by byte."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2

from tests.wire.conftest import Wire


def events_of(text: str) -> Iterator[tuple[int, str, Any]]:
    """Number, name and data of each event of a stream."""
    for block in text.removesuffix("\n\n").split("\n\n"):
        number, name, data = block.split("\n")
        yield int(number.removeprefix("id: ")), name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def ask(wire: Wire, message: str, **fields: Any) -> httpx2.Response:
    body = {"message": message, "stream": True, **fields}
    return wire.post("/api/v1/agent/prompt", body, **{"Accept-Encoding": "gzip"})


def test_a_stream_begins_with_start_and_ends_with_the_whole_answer(wire: Wire) -> None:
    reply = ask(wire, "nonce:native " + "x" * 5000)
    events = list(events_of(reply.text))
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.headers["x-cache"] == "MISS"
    assert "content-encoding" not in reply.headers
    assert "content-length" not in reply.headers
    assert [number for number, _, _ in events] == list(range(len(events)))
    names = [name for _, name, _ in events]
    assert names[0] == "start"
    assert names[-1] == "done"
    assert set(names[1:-1]) == {"delta"}
    assert len(names) > 5
    start, done = events[0][2], events[-1][2]
    assert start.keys() == {"id", "agent", "model", "conversation_id", "cached"}
    assert (start["id"], start["cached"]) == (done["id"], False)
    assert "".join(data["text"] for _, name, data in events if name == "delta") == done["response"]
    assert "nonce:native" in done["response"]


def test_one_run_serves_every_wire_with_the_same_text_and_usage(wire: Wire) -> None:
    calls = wire.provider.stats()["calls"]
    message = "nonce:one-entry"
    streamed = ask(wire, message)
    native = wire.post("/api/v1/agent/prompt", {"message": message})
    again = ask(wire, message)
    chat = {"model": "default", "messages": [{"role": "user", "content": message}]}
    plain = wire.post("/v1/chat/completions", chat)
    chunks = wire.post("/v1/chat/completions", {**chat, "stream": True, "stream_options": {"include_usage": True}})
    assert wire.provider.stats()["calls"] == calls + 1
    others = (native, again, plain, chunks)
    assert [reply.headers["x-cache"] for reply in others] == ["HIT"] * 4
    assert all(int(reply.headers["age"]) >= 0 for reply in others)
    done = list(events_of(streamed.text))[-1][2]
    replayed = list(events_of(again.text))
    assert [name for _, name, _ in replayed] == ["start", "delta", "done"]
    assert replayed[0][2]["cached"] is True
    data = [json.loads(line[6:]) for line in chunks.text.splitlines() if line.startswith("data: {")]
    texts = [
        native.json()["response"],
        replayed[-1][2]["response"],
        replayed[1][2]["text"],
        plain.json()["choices"][0]["message"]["content"],
        "".join(choice["delta"].get("content") or "" for chunk in data for choice in chunk["choices"]),
    ]
    assert texts == [done["response"]] * len(texts)
    counted = {"prompt_tokens": done["usage"]["input_tokens"], "completion_tokens": done["usage"]["output_tokens"]}
    assert plain.json()["usage"].items() >= counted.items()
    assert data[-1]["usage"] == plain.json()["usage"]
    assert native.json()["usage"] == done["usage"] == replayed[-1][2]["usage"]


def test_tools_of_the_server_are_events(wire: Wire) -> None:
    events = list(events_of(ask(wire, 'call:weather {"city": "Oslo"}', agent="meteorologist").text))
    tools = [(name, data) for _, name, data in events if name.startswith("tool")]
    assert [name for name, _ in tools] == ["tool_start", "tool_end"]
    (_, began), (_, ended) = tools
    assert began["tool"] == ended["tool"] == "weather"
    assert began["id"] == ended["id"]
    assert ended["succeeded"] is True
    assert "rain in Oslo" in events[-1][2]["response"]


def test_a_structured_answer_is_in_the_last_event(wire: Wire) -> None:
    events = list(events_of(ask(wire, "it broke", agent="clerk").text))
    assert events[-1][2]["response"]["urgent"] is False


def test_an_early_failure_is_a_status_and_a_late_one_an_event(wire: Wire) -> None:
    assert ask(wire, "hi", agent="nobody").status_code == 404
    assert ask(wire, "hi", surprise=1).status_code == 422
    early = ask(wire, "fault:500, natively")
    assert early.status_code == 502
    assert early.headers["content-type"] == "application/problem+json"
    late = ask(wire, "fault:stream-cut, natively")
    events = list(events_of(late.text))
    assert late.status_code == 200
    assert [name for _, name, _ in events][:2] == ["start", "delta"]
    assert events[-1][1] == "error"
    problem = events[-1][2]
    assert (problem["type"], problem["status"]) == ("urn:mnemosine:problem:provider-failed", 502)
    assert problem["request_id"] == late.headers["x-request-id"]
    assert "done" not in [name for _, name, _ in events]
