"""Which conversation a request to OpenAI's routes belongs to, said in a header."""

from dataclasses import dataclass
from hashlib import sha256

from fastapi import Request

from app.core.conversations import Conversations
from app.core.run import Caller
from app.errors import FieldFault, InvalidFields

CONVERSATION_HEADER = "X-Mnemosine-Conversation"
CHAT_UI_HEADER = "X-OpenWebUI-Chat-Id"
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class NamedConversation:
    """The conversation that a request names, and which of the two knows what was said before."""

    id: str
    tells_history: bool
    """Whether the request does. An interface sends all that it shows: what was edited there or asked again is not \
what we remember."""


async def conversation_of(request: Request, caller: Caller, conversations: Conversations) -> NamedConversation | None:
    """The conversation, `None` where none is named.

    `X-Mnemosine-Conversation` is the id of one of the caller's. `X-OpenWebUI-Chat-Id` is believed of a key that is
    marked `chat_ui` only: each chat of the interface gets a conversation of its own when it is first seen.
    Raises `InvalidFields` for an id that is none.
    """
    if (own := request.headers.get(CONVERSATION_HEADER)) is not None:
        return NamedConversation(_checked(CONVERSATION_HEADER, own, at_most=64), tells_history=False)
    if not caller.chat_ui or (chat := request.headers.get(CHAT_UI_HEADER)) is None:
        return None
    # Whatever the interface calls it: of a length that fits, and never the id of another conversation.
    name = f"chat-{sha256(_checked(CHAT_UI_HEADER, chat, at_most=_LONGEST).encode()).hexdigest()[:32]}"
    await conversations.ensure(caller, name)
    return NamedConversation(name, tells_history=True)


def _checked(header: str, value: str, *, at_most: int) -> str:
    if 0 < len(value) <= at_most and value.isprintable():
        return value
    message = f"must have 1 to {at_most} printable characters"
    raise InvalidFields(f"the header {header} {message}", errors=[FieldFault(header, message)])
