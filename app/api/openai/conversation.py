"""Which conversation a request to OpenAI's routes belongs to, said in a header."""

from hashlib import sha256

from fastapi import Request

from app.core.conversations import Conversations
from app.core.run import Caller
from app.errors import FieldFault, InvalidFields

HEADER = "X-Mnemosine-Conversation"
CHAT_UI_HEADER = "X-OpenWebUI-Chat-Id"
_LONGEST = 200


async def conversation_of(request: Request, caller: Caller, conversations: Conversations) -> str | None:
    """The id of the conversation, `None` where none is named.

    `X-Mnemosine-Conversation` is the id of one of the caller's. `X-OpenWebUI-Chat-Id` is believed of a key that is
    marked `chat_ui` only: each chat of the interface gets a conversation of its own when it is first seen.
    Raises `InvalidFields` for an id that is none.
    """
    if (own := request.headers.get(HEADER)) is not None:
        return _checked(HEADER, own, at_most=64)
    if not caller.chat_ui or (chat := request.headers.get(CHAT_UI_HEADER)) is None:
        return None
    # Whatever the interface calls it: of a length that fits, and never the id of another conversation.
    name = f"chat-{sha256(_checked(CHAT_UI_HEADER, chat, at_most=_LONGEST).encode()).hexdigest()[:32]}"
    await conversations.ensure(caller, name)
    return name


def _checked(header: str, value: str, *, at_most: int) -> str:
    if 0 < len(value) <= at_most and value.isprintable():
        return value
    message = f"must have 1 to {at_most} printable characters"
    raise InvalidFields(f"the header {header} {message}", errors=[FieldFault(header, message)])
