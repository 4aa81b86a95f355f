"""A visit: what is known about one HTTP request from its first byte to its last."""

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from app.core.identity import new_id
from app.core.rate_limiter import Allowance
from app.core.story import Hit, Story

_SCOPE_KEY = "mnemosine.visit"
_SANE_ID = re.compile(rb"[A-Za-z0-9._\-]{1,128}")


@dataclass(slots=True)
class Visit:
    """Request id and clock. Rooms add the stages they measured; the front door writes them out."""

    request_id: str
    started: float = field(default_factory=perf_counter)
    stages_ms: dict[str, float] = field(default_factory=dict[str, float])
    allowance: Allowance | None = None
    """What the limits say of this request; its headers go out with every answer."""
    route: str | None = None
    """Method and template of the route, where the framework did not choose it."""
    request_digest: bytes | None = None
    """What this request may be known by, should it come again; see `known_questions`."""

    hit: Hit | None = None
    """The answer from memory that this was, where nothing else is to be told of it."""
    _story: Story | None = None

    @property
    def story(self) -> Story:
        """What it met, told by the rooms. It begins when it is asked for, since a hit has none."""
        if self._story is None:
            self._story = Story()
        return self._story

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request came in."""
        return (perf_counter() - self.started) * 1000

    def server_timing(self) -> str:
        """The value of the `Server-Timing` header: each measured stage, then the total."""
        stages = [f"{name};dur={ms:.2f}" for name, ms in self.stages_ms.items()]
        return ", ".join([*stages, f"total;dur={self.elapsed_ms:.2f}"])


def begin_visit(client_id: bytes | None) -> Visit:
    """A visit that begins now. The client's own request id is kept where it is sane, else a new one is made."""
    sane = client_id is not None and _SANE_ID.fullmatch(client_id)
    return Visit(client_id.decode("ascii") if sane and client_id else new_id())


def open_visit(scope: MutableMapping[str, Any], client_id: bytes | None) -> Visit:
    """Begin the visit of `scope`, where every room finds it."""
    visit = scope[_SCOPE_KEY] = begin_visit(client_id)
    return visit


def visit_of(scope: Mapping[str, Any]) -> Visit:
    """The visit that the front door opened for this request."""
    return scope[_SCOPE_KEY]
