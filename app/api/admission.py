"""Admission: how many requests one worker answers at once, who waits for a turn, and who never has to."""

from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.slots import Slots

_NEVER_QUEUED = frozenset({"/livez", "/readyz", "/health", "/metrics", "/dashboard"})
_NEVER_QUEUED_BELOW = ("/api/v1/performance/", "/dashboard/")


class Admission:
    """`app` for at most `max_in_flight` requests at once; as many again wait in order, `wait_s` seconds each.

    Beyond that the request raises `Overloaded`. A slot is held until the response has been sent to its end, and is
    given back however that comes about. What tells how the server is doing is answered in any case.
    """

    def __init__(self, app: ASGIApp, *, max_in_flight: int, wait_s: float = 5.0) -> None:
        self.slots = Slots(
            "this worker", max_in_flight, queue_length=max_in_flight, wait_s=wait_s, setting="MAX_REQUESTS_IN_FLIGHT"
        )
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request when it is its turn."""
        path: str = scope["path"] if scope["type"] == "http" else ""
        if not path or path in _NEVER_QUEUED or path.startswith(_NEVER_QUEUED_BELOW):
            await self._app(scope, receive, send)
            return
        await self.slots.take()
        try:
            await self._app(scope, receive, send)
        finally:
            self.slots.give_back()
