"""Which hosts and origins are answered; who is not is refused in the one shape."""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.problems import problem
from app.errors import InvalidRequest

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?")


class AnsweredHosts:
    """`app` for requests whose Host header is one of `hosts`: exact names, `*.example.com` for all below one, `*`.

    What a page elsewhere makes a browser send to this machine's loopback carries that page's own name. Starlette's
    class does the same and answers in plain text.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str]) -> None:
        self._app = app
        self._any = "*" in hosts
        self._names = frozenset(host.lower() for host in hosts)
        self._below = tuple(host[1:].lower() for host in hosts if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with a 400."""
        if scope["type"] == "http" and not self._any and not self._is_answered(Headers(scope=scope).get("host", "")):
            refusal = InvalidRequest(
                "this server does not answer to this Host; ALLOWED_HOSTS names those it answers to"
            )
            await problem(scope, refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_answered(self, header: str) -> bool:
        found = _HOST.fullmatch(header)
        if found is None:
            return False
        name = found[1].lower()
        return name in self._names or name.endswith(self._below)


class AnsweredOrigins(CORSMiddleware):
    """Starlette's CORS, except that a preflight which is refused is a problem like any other failure."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer a preflight."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        asks_first = "origin" in headers and "access-control-request-method" in headers
        if asks_first and scope["method"] == "OPTIONS":
            answer = self.preflight_response(headers)
            if answer.status_code != 200:
                allowed = {name: value for name, value in answer.headers.items() if name.startswith(("access", "vary"))}
                refusal = InvalidRequest(
                    "this origin, method or header is not allowed; ALLOWED_ORIGINS names the origins"
                )
                answer = problem(scope, refusal, headers=allowed)
            await answer(scope, receive, send)
            return
        await super().__call__(scope, receive, send)
