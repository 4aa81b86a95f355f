"""Conversations on OpenAI's routes: by our header, by that of a chat interface, and by the field of Responses."""

from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from tests.wire.conftest import Wire

OURS = "X-Mnemosine-Conversation"
THEIRS = "X-OpenWebUI-Chat-Id"


def said(*contents: str) -> list[Any]:
    """A talk of these, the user first."""
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def new_conversation(wire: Wire) -> str:
    return wire.post("/api/v1/conversations", {}).raise_for_status().json()["id"]


def texts(wire: Wire, conversation_id: str) -> list[str]:
    """What was said in a conversation, in order."""
    reply = httpx2.get(f"{wire.server.url}/api/v1/conversations/{conversation_id}", headers=bearer(wire))
    return [entry["text"] for entry in reply.raise_for_status().json()["messages"]]


def bearer(wire: Wire) -> dict[str, str]:
    return {"Authorization": f"Bearer {wire.key}"}


def chats(wire: Wire) -> set[str]:
    reply = httpx2.get(f"{wire.server.url}/api/v1/conversations?limit=100", headers=bearer(wire))
    return {item["id"] for item in reply.raise_for_status().json()["items"] if item["id"].startswith("chat-")}


@pytest.mark.parametrize("stream", [False, True])
async def test_who_names_a_conversation_sends_only_what_is_new(wire: Wire, client: AsyncOpenAI, stream: bool) -> None:
    talk = new_conversation(wire)
    for question in ("nonce:first", "nonce:second"):
        answer: Any = await client.chat.completions.create(
            model="default", messages=said(question), stream=stream, extra_headers={OURS: talk}
        )
        if stream:
            assert [chunk async for chunk in answer]
    kept = texts(wire, talk)
    assert len(kept) == 4
    assert (kept[0], kept[2]) == ("nonce:first", "nonce:second")
    # The model was told of the first when it was asked the second.
    again = await client.chat.completions.create(model="default", messages=said(kept[0], kept[1], kept[2]))
    assert again.choices[0].message.content == kept[3]


async def test_somebody_elses_conversation_is_not_there(wire: Wire, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="default", messages=said("hi"), extra_headers={OURS: "nobody"})
    with pytest.raises(openai.UnprocessableEntityError):
        await client.chat.completions.create(model="default", messages=said("hi"), extra_headers={OURS: "x" * 65})


async def test_a_chat_interface_is_believed_where_its_key_says_so(wire: Wire) -> None:
    before = chats(wire)
    body = {"model": "default", "messages": said("nonce:ui")}
    wire.post("/v1/chat/completions", body, **{THEIRS: "chat 1"}).raise_for_status()
    assert chats(wire) == before, "the control: an unmarked key is not believed"
    headers = {"Authorization": f"Bearer {wire.new_key(chat_ui=True)}"}
    for _ in range(2):
        wire.post("/v1/chat/completions", body, **headers, **{THEIRS: "chat 1"}).raise_for_status()
    wire.post("/v1/chat/completions", body, **headers, **{THEIRS: "chat 2"}).raise_for_status()
    made = chats(wire) - before
    assert len(made) == 2
    assert sorted(len(texts(wire, one)) for one in made) == [2, 4]


async def test_what_an_interface_shows_is_what_was_said(wire: Wire) -> None:
    headers = {"Authorization": f"Bearer {wire.new_key(chat_ui=True)}", THEIRS: "chat of edits"}
    first = {"model": "default", "messages": said("nonce:edited away")}
    wire.post("/v1/chat/completions", first, **headers).raise_for_status()
    edited = {"model": "default", "messages": said("nonce:edited")}
    answer = wire.post("/v1/chat/completions", edited, **headers).raise_for_status()
    # The same question of somebody without any conversation has the same key: nothing else was told to the model.
    assert wire.post("/v1/chat/completions", edited).raise_for_status().headers["x-cache"] == "HIT"
    assert answer.headers["x-cache"] == "MISS"


async def test_a_response_belongs_to_the_conversation_that_it_names(wire: Wire, client: AsyncOpenAI) -> None:
    talk = new_conversation(wire)
    one = await client.responses.create(model="default", input="nonce:one", conversation=talk)
    two = await client.responses.create(model="default", input="nonce:two", conversation={"id": talk})
    assert one.conversation is not None
    assert two.conversation is not None
    assert one.conversation.id == two.conversation.id == talk
    assert texts(wire, talk) == ["nonce:one", one.output_text, "nonce:two", two.output_text]
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(model="default", input="hi", conversation="nobody")
