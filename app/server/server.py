"""uvicorn's server, ending in an order in which nobody is lost."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, cast

import uvicorn

from app.server.connection import Connection, State
from app.server.listener import BACKLOG, turn_newcomers_away, until_nobody_waits
from app.server.options import Application, Options

_FORCED_S = 0.7
"""After a second signal, for what can be ended in order."""
_CLOSING_S = 5.0
"""For the application to close what it opened, once its requests have ended."""


_YOUNG_OBJECTS = 20_000
"""How many more objects there may be before Python looks for rubbish among them; its own 700 are three prompts."""


def settle() -> None:
    """Take all that is loaded by now out of the search for rubbish, and search from now on, but less often."""
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 10, 10)
    gc.enable()


class Server(uvicorn.Server):
    """Serves until `should_exit`, then: nobody new, running requests finish, then everything is closed.

    Sets `application.draining` at once, accepts whoever stands before the listener, closes it, answers what is running
    or on its way with `Connection: close`, and sets `application.last_call` before the grace time is over.
    Connections in `kept` were accepted before there was a server, and are served like those that come.
    """

    def __init__(self, application: Application, options: Options, kept: Sequence[socket.socket] = ()) -> None:
        config = uvicorn.Config(
            cast("Any", application),
            loop="auto",  # uvloop where it is installed
            http=Connection,
            ws="none",
            lifespan="on",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=bool(options.trusted_proxies),
            forwarded_allow_ips=list(options.trusted_proxies),
            timeout_keep_alive=options.keep_alive_s,
            timeout_graceful_shutdown=options.graceful_timeout_s,
            limit_max_requests=options.max_requests or None,
            limit_max_requests_jitter=options.max_requests_jitter,
            backlog=BACKLOG,
        )
        super().__init__(config)
        self.server_state = State()
        self._has_settled = False
        self.application = application
        self.options = options
        self._kept = kept

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, and to serve who was kept."""
        await super().startup(sockets=sockets)
        loop = asyncio.get_running_loop()
        kept, self._kept = self._kept, ()
        for client in kept:
            with contextlib.suppress(OSError):  # gone meanwhile
                await loop.connect_accepted_socket(self._new_connection, client)

    def _new_connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end. Once a second slow clients are cut off."""
        if counter % 10 == 0:
            self._sweep(Connection.sweep)
        if not self._has_settled and self.application.is_loaded is not None:
            self._has_settled = True
            settle()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in order, as the class says, or in a hurry when `force_exit` is set meanwhile."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.graceful_timeout_s
        last_call_at = deadline - self.options.last_call_s
        state = self.server_state
        self.application.draining.set()
        await self.close_listeners(sockets or [])
        state.leaving = True
        for connection in list(state.connections):
            connection.shutdown()
        while (state.connections or state.tasks) and loop.time() < deadline and not self.force_exit:
            self._sweep(Connection.close_if_idle)
            if loop.time() >= last_call_at:
                self.application.last_call.set()
            await asyncio.sleep(0.02)
        self.application.last_call.set()
        await self._cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FORCED_S / 2 if self.force_exit else _CLOSING_S):
                await self.lifespan.shutdown()

    async def close_listeners(self, sockets: list[socket.socket]) -> None:
        """Accept everybody who stands before the listeners, then close them."""
        for listener in sockets:
            turn_newcomers_away(listener)
            await until_nobody_waits(listener)
        self._close(sockets)

    def _close(self, sockets: list[socket.socket]) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()

    async def _cut(self) -> None:
        # Cancelled requests that have not answered yet are answered now, see the front door.
        state = self.server_state
        for task in state.tasks:
            task.cancel(msg="the time for running requests is over")
        if state.tasks:
            await asyncio.wait(set(state.tasks), timeout=_FORCED_S / 2)
        for connection in list(state.connections):
            connection.transport.close()

    def _sweep(self, sweep: Callable[[Connection, float], None]) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(cast("Iterable[Connection]", self.server_state.connections)):
            sweep(connection, now)


class LoneServer(Server):
    """The one process of a server: told by signals, SIGTERM or SIGINT. Exit status 0; the second signal ends it."""

    def __init__(
        self,
        application: Application,
        options: Options,
        announce: Callable[[], None],
        kept: Sequence[socket.socket] = (),
    ) -> None:
        super().__init__(application, options, kept)
        self._announce = announce

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal. uvicorn would raise it again after the shutdown, which ends in status 128 + n."""
        if self.force_exit:
            os._exit(0)
        if self.should_exit:
            self.force_exit = True
            # Even where the loop, or a thread that the interpreter waits for, never comes back.
            timer = threading.Timer(_FORCED_S, os._exit, (0,))
            timer.daemon = True
            timer.start()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, then say so."""
        await super().startup(sockets=sockets)
        if self.started and not self.should_exit:
            self._announce()


def serve_alone(
    application: Application,
    listener: socket.socket,
    options: Options,
    announce: Callable[[], None],
    kept: Sequence[socket.socket] = (),
) -> None:
    """Serve in this process until SIGTERM or SIGINT; `announce()` is called when requests are accepted."""
    server = LoneServer(application, options, announce, kept)
    # Also during the last steps of the interpreter a signal is no reason for a traceback.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, server.handle_exit)
    server.run(sockets=[listener])
