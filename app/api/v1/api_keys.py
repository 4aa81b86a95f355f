"""The caller's own API keys."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.dependencies import CurrentCaller, RuntimeDep, SignedIn
from app.api.json_route import Body, JsonRoute, Text
from app.core.accounts import ApiKeyRow, KeyWishes
from app.core.api_keys import shown_prefix

router = APIRouter(prefix="/api/v1/auth/api-keys", tags=["accounts"], route_class=JsonRoute)

MAX_DAYS = 3650
MAX_PER_MINUTE = 1_000_000_000

PerMinute = Annotated[int, Field(ge=1, le=MAX_PER_MINUTE)]


class NewKey(Body):
    """A key to be made; only `name` is required."""

    name: Annotated[Text, Field(min_length=1, max_length=200)]
    expires_in_days: Annotated[float, Field(gt=0, le=MAX_DAYS)] | None = None
    agents: (
        Annotated[list[Annotated[Text, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=100)]
        | None
    ) = None
    """The only agents that the key may use; such a key never administers anything."""
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    chat_ui: bool = False
    """Believe the chat headers (`X-OpenWebUI-Chat-Id`) of whoever uses the key."""


class KeyReply(BaseModel):
    """A key as its owner sees it; `prefix` is how it begins."""

    id: str
    name: str
    prefix: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    """Written every half minute."""
    agents: list[str] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    chat_ui: bool


class NewKeyReply(KeyReply):
    """The same with the key itself, which is shown this once."""

    key: str


@router.post("", status_code=201, responses={404: {}, 409: {}})
async def create_key(body: NewKey, caller: SignedIn, runtime: RuntimeDep) -> NewKeyReply:
    """Make a key for programs; it does what its owner may do, within what is chosen here."""
    wishes = KeyWishes(
        name=body.name,
        expires_in_days=body.expires_in_days,
        agents=None if body.agents is None else tuple(dict.fromkeys(body.agents)),
        requests_per_minute=body.requests_per_minute,
        tokens_per_minute=body.tokens_per_minute,
        chat_ui=body.chat_ui,
    )
    row, key = await runtime.accounts.create_key(caller.id, wishes)
    return NewKeyReply(**_shown(row).model_dump(), key=key)


@router.get("")
async def list_keys(caller: CurrentCaller, runtime: RuntimeDep) -> list[KeyReply]:
    """The caller's keys, oldest first."""
    return [_shown(row) for row in await runtime.accounts.keys(caller.id)]


@router.delete("/{key_id}", status_code=204)
async def delete_key(key_id: str, caller: SignedIn, runtime: RuntimeDep) -> None:
    """End a key; it is refused from the next request on."""
    await runtime.accounts.delete_key(key_id, user_id=caller.id)


def _shown(row: ApiKeyRow) -> KeyReply:
    return KeyReply(
        id=row.id,
        name=row.name,
        prefix=shown_prefix(row.id),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        agents=None if row.agents is None else list(row.agents),
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        chat_ui=row.chat_ui,
    )
