"""Signing in and out, and who one is."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from fastapi.security import OAuth2PasswordRequestForm
from pydantic import BaseModel, Field

from app.api.dependencies import CurrentCaller, Peer, RuntimeDep, SignedIn
from app.api.json_route import Body, JsonRoute, Password, Text

router = APIRouter(prefix="/api/v1/auth", tags=["accounts"], route_class=JsonRoute)


class Token(BaseModel):
    """A bearer token for the `Authorization` header."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - the name of the scheme
    expires_in: int
    """Seconds."""


class Me(BaseModel):
    """The caller, as the server sees them."""

    id: str
    username: str
    role: Literal["admin", "user"]


class NewPassword(Body):
    """A change of one's own password."""

    old_password: Annotated[Text, Field(max_length=1024)]
    new_password: Password


@router.post("/token", responses={401: {}, 429: {}})
async def sign_in(form: Annotated[OAuth2PasswordRequestForm, Depends()], peer: Peer, runtime: RuntimeDep) -> Token:
    """Exchange a username and a password for a token (OAuth2 password grant)."""
    access = await runtime.callers.sign_in(form.username, form.password, peer=peer)
    return Token(access_token=access.token, expires_in=access.expires_in_s)


@router.get("/me")
async def me(caller: CurrentCaller) -> Me:
    """Who the credential belongs to."""
    return Me(id=caller.id, username=caller.username, role=caller.role)


@router.post("/logout", status_code=204, responses={404: {}})
async def sign_out_everywhere(caller: SignedIn, runtime: RuntimeDep) -> None:
    """End every token of the caller, on every device; API keys stay."""
    await runtime.accounts.sign_out_everywhere(caller)


@router.post("/password", status_code=204, responses={404: {}})
async def change_password(body: NewPassword, caller: SignedIn, peer: Peer, runtime: RuntimeDep) -> None:
    """Replace the caller's password; every token and every API key ends with it."""
    await runtime.accounts.change_password(caller, old=body.old_password, new=body.new_password, peer=peer)
