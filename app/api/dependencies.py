"""What a route may ask for by annotating an argument."""

import asyncio
import ipaddress
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from app.agent_room import AgentRoom
from app.api.limits import admit
from app.api.visit import visit_of
from app.core.run import Caller
from app.errors import NotAllowed, NotAuthenticated, Unavailable
from app.runtime import Runtime

_bearer = OAuth2PasswordBearer("/api/v1/auth/token", auto_error=False)


async def _runtime(request: Request) -> Runtime:
    return cast("Runtime", request.app.state.runtime)


RuntimeDep = Annotated[Runtime, Depends(_runtime)]


async def _recognised(runtime: RuntimeDep, credential: Annotated[str | None, Depends(_bearer)]) -> Caller:
    if not credential:
        raise NotAuthenticated("send Authorization: Bearer with a token or an API key")
    return await runtime.callers.recognise(credential)


_Recognised = Annotated[Caller, Depends(_recognised)]


async def _caller(request: Request, runtime: RuntimeDep, caller: _Recognised) -> Caller:
    await admit(runtime.limiter, visit_of(request.scope), caller, "other")
    return caller


CurrentCaller = Annotated[Caller, Depends(_caller)]
"""Whoever sent a valid credential; a route with this argument answers nobody else. Counts in the wide limit."""


async def _limited_caller(request: Request, runtime: RuntimeDep, caller: _Recognised) -> Caller:
    await admit(runtime.limiter, visit_of(request.scope), caller, "prompts")
    return caller


LimitedCaller = Annotated[Caller, Depends(_limited_caller)]
"""Like `CurrentCaller`, for routes that ask a model: counts as a prompt, against `RATE_LIMIT_PER_MINUTE`."""


async def _admin(caller: CurrentCaller) -> Caller:
    if not caller.is_admin:
        raise NotAllowed("only an administrator may do this")
    return caller


Admin = Annotated[Caller, Depends(_admin)]


async def _signed_in(caller: CurrentCaller) -> Caller:
    if caller.key_id is not None:
        raise NotAllowed("an API key may not do this; sign in with the password and use the token")
    return caller


SignedIn = Annotated[Caller, Depends(_signed_in)]
"""Whoever signed in with a password. A key that leaked must not be able to make others, or to lock its owner out."""


async def _peer(request: Request) -> str:
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # Whoever has one address of IPv6 has the 2**64 of its network.
    return str(ipaddress.ip_network((address.packed[:8] + bytes(8), 64)))


Peer = Annotated[str, Depends(_peer)]
"""The address that the request came from; the server has put in what a trusted proxy says of it."""


async def _agent_room(runtime: RuntimeDep) -> AgentRoom:
    # A prompt that comes while the agents are still being loaded waits for them.
    loaded = runtime.agent_room
    if loaded.done() and not loaded.cancelled() and loaded.exception() is None:
        return loaded.result()
    try:
        async with asyncio.timeout(30):
            return await asyncio.shield(loaded)
    except TimeoutError as error:
        raise Unavailable("the agents are still being loaded", retry_after_s=5) from error
    except Exception as error:
        raise Unavailable("the agents could not be loaded; the server's log says why", retry_after_s=60) from error


AgentRoomDep = Annotated[AgentRoom, Depends(_agent_room)]


ASKS_WHO = _recognised
ASKS_A_MODEL = _limited_caller
ASKS_FOR_MORE = frozenset({_admin, _signed_in})
"""What the OpenAPI document reads off a route: who has these among its dependencies can be refused accordingly."""
