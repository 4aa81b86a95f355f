"""Answers that their caller may ask for again, and go on from; of each owner alone, for as long as they are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import from_json, to_json

from app.core.run import Answer, Caller, Question
from app.db.async_session import Database
from app.db.responses import ResponseRow, add_response, delete_response, get_response
from app.errors import NotFound

if TYPE_CHECKING:
    from pydantic_ai import ModelMessage

KEPT_DAYS = 30
"""As long as OpenAI keeps them."""


@dataclass(frozen=True, slots=True)
class Talk:
    """What was said up to an answer, the answer included, and the rules that go on to hold."""

    messages: "tuple[ModelMessage, ...]" = ()
    rules: tuple[str, ...] = ()


class Responses:
    """The kept answers. Each holds all that was said before it, so that any of them may be deleted."""

    def __init__(self, database: Database, *, kept_days: float = KEPT_DAYS) -> None:
        self._database = database
        self._kept = timedelta(days=kept_days)

    async def keep(self, caller: Caller, response_id: str, body: bytes, talk: bytes) -> None:
        """Store an answer under its id; it is there when this returns."""
        now = datetime.now(UTC)
        row = ResponseRow(response_id, caller.id, now, body.decode(), talk.decode())
        async with self._database.write() as session:
            await add_response(session, row, keep_after=now - self._kept)

    async def body(self, caller: Caller, response_id: str) -> bytes:
        """The answer as it was given. Raises `NotFound`, also for somebody else's."""
        return (await self._row(caller, response_id)).body.encode()

    async def talk(self, caller: Caller, response_id: str) -> Talk:
        """What to go on from. Raises `NotFound`, also for somebody else's; imports the agent stack."""
        from pydantic_ai.messages import ModelMessagesTypeAdapter

        kept = from_json((await self._row(caller, response_id)).talk)
        return Talk(tuple(ModelMessagesTypeAdapter.validate_python(kept["messages"])), tuple(kept["rules"]))

    async def forget(self, caller: Caller, response_id: str) -> None:
        """Delete an answer. Raises `NotFound`, also for somebody else's."""
        async with self._database.write() as session:
            found = await delete_response(session, response_id, user_id=caller.id)
        if not found:
            raise _missing(response_id)

    async def _row(self, caller: Caller, response_id: str) -> ResponseRow:
        keep_after = datetime.now(UTC) - self._kept
        async with self._database.read() as session:
            row = await get_response(session, response_id, user_id=caller.id, keep_after=keep_after)
        if row is None:
            raise _missing(response_id)
        return row


def written_talk(question: Question, answer: Answer, text: str, rules: Sequence[str]) -> bytes:
    """What was said up to `answer`, as `Responses.talk` reads it; `text` is the answer's."""
    from pydantic_ai.messages import (
        ModelMessagesTypeAdapter,
        ModelRequest,
        ModelResponse,
        TextPart,
        UserPromptPart,
    )

    said: list[ModelMessage] = list(question.history)
    if answer.messages is not None:
        said += ModelMessagesTypeAdapter.validate_json(answer.messages)
    else:
        said += [ModelRequest([UserPromptPart(question.message or "")]), ModelResponse([TextPart(text)])]
    for message in said:
        if isinstance(message, ModelRequest):
            # Instructions are of one run; the next one brings its own.
            message.instructions = None
    messages = cast("list[Any]", ModelMessagesTypeAdapter.dump_python(said, mode="json"))
    return to_json({"rules": list(rules), "messages": messages})


def _missing(response_id: str) -> NotFound:
    return NotFound(f"there is no response {response_id!r}; they are kept for {KEPT_DAYS} days, unless store is false")
