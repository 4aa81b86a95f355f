"""How to serve, and what can be served."""

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol


class Application(Protocol):
    """What is served: an ASGI application that can be told of its end."""

    draining: asyncio.Event
    """Set first: no new work, not ready."""
    last_call: asyncio.Event
    """Set before what still runs is cancelled."""

    @property
    def is_loaded(self) -> bool | None:
        """Whether it has all it needs to answer; `None` while that is not decided."""
        ...

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one event."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve; 0 switches a limit off."""

    workers: int = 1
    keep_alive_s: int = 5
    graceful_timeout_s: int = 25
    max_requests: int = 0
    """After about so many requests a worker is replaced: between this and `max_requests_jitter` more."""
    max_requests_jitter: int = 0
    max_worker_bytes: int = 0
    """A worker whose resident memory, shared pages included, is above this is replaced."""
    trusted_proxies: tuple[str, ...] = ()

    @property
    def last_call_s(self) -> float:
        """Seconds of the grace time that streams get to end by themselves."""
        return min(5.0, self.graceful_timeout_s / 5)
