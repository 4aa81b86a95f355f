"""What carries the application: uvicorn's server with manners of our own, in one process or below gunicorn's arbiter.

Both get a socket that is already bound, so a taken port is one clear line before anything else happens.
"""

import importlib
import socket
from collections.abc import Callable

from app.server.allocator import return_memory
from app.server.doorman import Doorman
from app.server.listener import bind
from app.server.options import Application, Options

__all__ = ["Application", "Doorman", "Options", "bind", "return_memory", "serve"]


def serve(
    make: Callable[[], Application],
    listener: socket.socket,
    options: Options,
    announce: Callable[[], None],
    *,
    preload: str | None = None,
    doorman: Doorman | None = None,
) -> None:
    """Serve what `make()` gives until SIGTERM or SIGINT; `announce()` is called when requests are accepted.

    In this process, or in workers below it where there are to be several, or where the one must be replaced at times.
    `preload` is a module that workers share; one process alone imports it when the application wants it. A `doorman`
    who stands at the listener leaves as late as can be, and those whom he kept are served first.
    """
    # Only here: it takes some time to import, and a socket that answers is wanted before.
    from app.server.server import serve_alone

    if options.workers == 1 and not options.max_requests and not options.max_worker_bytes:
        application = make()
        serve_alone(application, listener, options, announce, doorman.leave() if doorman else ())
        return
    from app.server.prefork import serve_with_workers

    # Before the fork, or every worker would import the agent stack into memory of its own.
    if preload is not None:
        importlib.import_module(preload)
    application = make()
    serve_with_workers(lambda: application, listener, options, announce, doorman.leave() if doorman else ())
