"""What carries the application: uvicorn's server with manners of our own, in one process or below gunicorn's arbiter.

Both get a socket that is already bound, so a taken port is one clear line before anything else happens.
"""

import importlib
import socket
from collections.abc import Callable

from app.server.listener import bind
from app.server.server import Application, Options, serve_alone

__all__ = ["Application", "Options", "bind", "serve"]


def serve(
    make: Callable[[], Application],
    listener: socket.socket,
    options: Options,
    announce: Callable[[], None],
    *,
    preload: str | None = None,
) -> None:
    """Serve what `make()` gives until SIGTERM or SIGINT; `announce()` is called when requests are accepted.

    In this process, or in workers below it where there are to be several, or where the one must be replaced at times.
    `preload` is a module that workers share; one process alone imports it when the application wants it.
    """
    if options.workers == 1 and not options.max_requests and not options.max_worker_bytes:
        serve_alone(make(), listener, options, announce)
        return
    from app.server.prefork import serve_with_workers

    # Before the fork, or every worker would import the agent stack into memory of its own.
    if preload is not None:
        importlib.import_module(preload)
    serve_with_workers(make, listener, options, announce)
