"""Users, for administrators."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from app.api.dependencies import Admin, RuntimeDep
from app.api.json_route import Body, JsonRoute, Password, Text
from app.core.accounts import UserRow

router = APIRouter(prefix="/api/v1/users", tags=["accounts"], route_class=JsonRoute)

Username = Annotated[Text, Field(min_length=1, max_length=64, pattern=r"^[\w.@+\-]+$")]


class NewUser(Body):
    """A user to be added."""

    username: Username
    password: Password
    role: Literal["admin", "user"] = "user"


class UserChange(Body):
    """What shall be different; what is left out stays."""

    username: Username | None = None
    password: Password | None = None
    role: Literal["admin", "user"] | None = None
    disabled: bool | None = None


class UserReply(BaseModel):
    """A user as administrators see them."""

    id: str
    username: str
    role: Literal["admin", "user"]
    disabled: bool
    created_at: datetime
    updated_at: datetime


class UserListReply(BaseModel):
    """A page of users; `next_cursor` leads to the next one and is `null` on the last."""

    items: list[UserReply]
    next_cursor: str | None


@router.post("", status_code=201, responses={409: {}})
async def create_user(body: NewUser, _: Admin, runtime: RuntimeDep) -> UserReply:
    """Add a user; 409 where the name is taken in any spelling."""
    row = await runtime.accounts.create_user(username=body.username, password=body.password, role=body.role)
    return _shown(row)


@router.get("")
async def list_users(
    _: Admin,
    runtime: RuntimeDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> UserListReply:
    """Users, oldest first, a page at a time."""
    page = await runtime.accounts.users(limit=limit, cursor=cursor)
    return UserListReply(items=[_shown(row) for row in page.rows], next_cursor=page.next_cursor)


@router.get("/{user_id}")
async def show_user(user_id: str, _: Admin, runtime: RuntimeDep) -> UserReply:
    """One user."""
    return _shown(await runtime.accounts.user(user_id))


@router.patch("/{user_id}", responses={409: {}})
async def change_user(user_id: str, body: UserChange, _: Admin, runtime: RuntimeDep) -> UserReply:
    """Change a user. A new password, another role and disabling end all tokens and API keys of the user."""
    row = await runtime.accounts.change_user(
        user_id, username=body.username, password=body.password, role=body.role, disabled=body.disabled
    )
    return _shown(row)


@router.delete("/{user_id}", status_code=204, responses={409: {}})
async def delete_user(user_id: str, _: Admin, runtime: RuntimeDep) -> None:
    """Remove a user with all keys and conversations; the record of what their runs cost stays.

    The user is disabled first. If it fails half-way, send it again.
    """
    await runtime.accounts.delete_user(user_id)


def _shown(row: UserRow) -> UserReply:
    return UserReply(
        id=row.id,
        username=row.username,
        role=row.role,
        disabled=row.disabled,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
