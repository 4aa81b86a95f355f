"""The MCP servers that an open agent speaks with, and whether they are still there."""

import asyncio
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

from pydantic_ai.toolsets import AbstractToolset

_ASK_EVERY_S = 1.0
_WAIT_S = 0.5
_METHOD_NOT_FOUND = -32601
"""JSON-RPC's own code; a server of the newer protocol, which knows no ping, answers with it."""


class ToolServers:
    """The MCP servers behind these toolsets, which have been entered; not those that each run enters for itself.

    A session that has ended (its process died, the server was started anew) never comes back: every call on it fails,
    and the library tells the model so, run after run. So it has to be seen here, and the agent opened again.
    """

    def __init__(self, toolsets: Iterable[AbstractToolset[Any]], *, clock: Callable[[], float]) -> None:
        found: list[Any] = []
        for toolset in toolsets:
            toolset.apply(found.append)
        self._toolsets = [one for one in found if _holds_session(one)]
        self._clock = clock
        self._asking = asyncio.Lock()
        self._asked_at = -math.inf
        self._are_there = True

    async def are_there(self) -> bool:
        """Whether no session has ended. They are asked once a second at most, and one that is slow counts as there."""
        if not self._toolsets or not self._is_due():
            return self._are_there
        async with self._asking:
            if self._is_due():
                self._are_there = all(await asyncio.gather(*(_answers(one) for one in self._toolsets)))
                self._asked_at = self._clock()
        return self._are_there

    def _is_due(self) -> bool:
        return self._are_there and self._clock() - self._asked_at >= _ASK_EVERY_S


def _holds_session(toolset: Any) -> bool:
    # Who has one has imported it, with its extra; the others need not have it.
    mcp = sys.modules.get("pydantic_ai.mcp")
    # Whether each run enters one of its own stands in a private field.
    return mcp is not None and isinstance(toolset, mcp.MCPToolset) and not toolset._resolves_per_run


async def _answers(toolset: Any) -> bool:
    try:
        async with asyncio.timeout(_WAIT_S):
            await toolset.client.ping()
    except TimeoutError:
        return True  # It may be busy with somebody's call, which has time limits of its own.
    except Exception as error:
        return getattr(getattr(error, "error", None), "code", None) == _METHOD_NOT_FOUND
    return True
