"""Conversations: made, listed, shown, renamed, forked, exported, deleted. Prompts continue them by their id."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from app.api.dependencies import CurrentCaller, RuntimeDep
from app.api.json_route import Body, JsonRoute, Text
from app.core.conversations import ConversationRow
from app.core.transcript import Said, transcript

router = APIRouter(prefix="/api/v1/conversations", tags=["conversations"], route_class=JsonRoute)

Title = Annotated[Text, Field(min_length=1, max_length=200)]


class NewConversation(Body):
    """A conversation to be begun."""

    title: Title | None = None


class ConversationChange(Body):
    """The new title; `null` for none."""

    title: Title | None


class ForkBody(Body):
    """Where a fork leaves the conversation, and what it is called."""

    up_to: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    """The id of the last message that the fork has; all of them where it is absent."""
    title: Title | None = None
    """As the conversation's own where it is absent."""


class ConversationReply(BaseModel):
    """A conversation without its messages."""

    id: str
    title: str | None
    message_count: int
    forked_from: str | None
    """The conversation that this one was forked from."""
    forked_at: str | None
    """The last message that both have."""
    created_at: datetime
    updated_at: datetime


class ConversationWithMessages(ConversationReply):
    """A conversation with what was said in it, oldest first."""

    messages: list[Said]


class ConversationListReply(BaseModel):
    """A page of conversations; `next_cursor` leads to the next one and is `null` on the last."""

    items: list[ConversationReply]
    next_cursor: str | None


@router.post("", status_code=201)
async def create_conversation(body: NewConversation, caller: CurrentCaller, runtime: RuntimeDep) -> ConversationReply:
    """Begin a conversation; prompts continue it by its id."""
    return _shown(await runtime.conversations.create(caller, title=body.title))


@router.get("")
async def list_conversations(
    caller: CurrentCaller,
    runtime: RuntimeDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> ConversationListReply:
    """One's own conversations, the one used last first, a page at a time."""
    page = await runtime.conversations.page(caller, limit=limit, cursor=cursor)
    return ConversationListReply(items=[_shown(row) for row in page.rows], next_cursor=page.next_cursor)


@router.get("/{conversation_id}")
async def show_conversation(
    conversation_id: str, caller: CurrentCaller, runtime: RuntimeDep
) -> ConversationWithMessages:
    """A conversation with its messages."""
    row, entries = await runtime.conversations.show(caller, conversation_id)
    return ConversationWithMessages(**_shown(row).model_dump(), messages=transcript(entries))


@router.patch("/{conversation_id}")
async def rename_conversation(
    conversation_id: str, body: ConversationChange, caller: CurrentCaller, runtime: RuntimeDep
) -> ConversationReply:
    """Give a conversation another title."""
    return _shown(await runtime.conversations.rename(caller, conversation_id, body.title))


@router.post("/{conversation_id}/fork", status_code=201)
async def fork_conversation(
    conversation_id: str, body: ForkBody, caller: CurrentCaller, runtime: RuntimeDep
) -> ConversationReply:
    """A new conversation that begins as this one did."""
    return _shown(await runtime.conversations.fork(caller, conversation_id, up_to=body.up_to, title=body.title))


@router.get("/{conversation_id}/export")
async def export_conversation(conversation_id: str, caller: CurrentCaller, runtime: RuntimeDep) -> Response:
    """The whole conversation as a JSON file, its messages in Pydantic AI's own format."""
    exported = await runtime.conversations.export(caller, conversation_id)
    # The id is known to be one of ours, hence plain.
    disposition = f'attachment; filename="conversation-{conversation_id}.json"'
    return Response(exported, media_type="application/json", headers={"Content-Disposition": disposition})


@router.delete("/{conversation_id}", status_code=204)
async def delete_conversation(conversation_id: str, caller: CurrentCaller, runtime: RuntimeDep) -> None:
    """Remove a conversation; the record of what its runs cost stays."""
    await runtime.conversations.delete(caller, conversation_id)


def _shown(row: ConversationRow) -> ConversationReply:
    return ConversationReply(
        id=row.id,
        title=row.title,
        message_count=row.length,
        forked_from=row.forked_from,
        forked_at=row.forked_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
