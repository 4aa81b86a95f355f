"""The two servers that carry the application: uvicorn for one process, gunicorn for several.

Both get a socket that is already bound, so a taken port is one clear line before anything else happens.
"""

import errno
import gc
import importlib
import signal
import socket
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn

from app.errors import BadConfiguration

_BACKLOG = 2048


class _Server(uvicorn.Server):
    """uvicorn that ends with status 0 on SIGTERM and SIGINT, and at once on the second."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would remember the signal and raise it again after the shutdown, which ends in status 128 + n.
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and not self.should_exit:
            self._announce()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on `host` and `port`; connections wait in it until a server accepts them.

    Raises `BadConfiguration` that says what to change.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise BadConfiguration(f"HOST {host} is no address of this machine; example: HOST=127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # At once: two sockets may be bound to one port as long as neither listens.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"PORT {port} on {host} is taken by another program; example: mnemosine serve --port {port + 1}"
        elif error.errno in (errno.EACCES, errno.EPERM):
            message = f"PORT {port} needs privileges that this user has not; example: PORT=8000"
        else:
            message = f"HOST {host} cannot be listened on: {error.strerror}; example: HOST=127.0.0.1"
        raise BadConfiguration(message) from error
    return listener


def serve_alone(
    make_app: Callable[[], Any],
    listener: socket.socket,
    *,
    announce: Callable[[], None],
    keep_alive_s: int,
    graceful_timeout_s: int,
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Serve in this process until SIGTERM or SIGINT; `announce()` is called when requests are accepted."""
    config = uvicorn.Config(
        make_app,
        factory=True,
        loop="auto",  # uvloop where it is installed
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=graceful_timeout_s,
        backlog=_BACKLOG,
    )
    _Server(config, announce).run(sockets=[listener])


def serve_with_workers(
    make_app: Callable[[], Any],
    listener: socket.socket,
    *,
    workers: int,
    announce: Callable[[], None],
    keep_alive_s: int,
    graceful_timeout_s: int,
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Serve in `workers` processes forked from this one after its imports; it stays as their supervisor.

    The imported code is shared between them as long as nobody writes to it: hence the freeze before each fork.
    """
    from gunicorn.app.base import BaseApplication
    from gunicorn.glogging import Logger
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    def freeze(arbiter: Any, worker: Any) -> None:
        gc.freeze()

    def ready(arbiter: Any) -> None:
        announce()

    class RootLogger(Logger):
        """gunicorn's lines go through our handler, like everybody's."""

        def setup(self, cfg: Any) -> None:
            super().setup(cfg)
            self.error_log.handlers.clear()
            self.error_log.propagate = True

    class Prefork(BaseApplication):
        def load_config(self) -> None:
            options: dict[str, Any] = {
                "bind": f"fd://{listener.fileno()}",
                "backlog": _BACKLOG,
                "workers": workers,
                "worker_class": "asgi",
                "asgi_lifespan": "on",
                "preload_app": True,
                "pre_fork": freeze,
                "when_ready": ready,
                "keepalive": keep_alive_s,
                "graceful_timeout": graceful_timeout_s,
                "forwarded_allow_ips": ",".join(trusted_proxies),
                "logger_class": RootLogger,
                "loglevel": "warning",
                "control_socket_disable": True,
                "proc_name": "mnemosine",
            }
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            # Before the fork, or every worker would import the agent stack into memory of its own.
            importlib.import_module("app.core.prompt_service")
            app = make_app()
            return ProxyHeadersMiddleware(app, trusted_hosts=list(trusted_proxies)) if trusted_proxies else app

    # gunicorn sets its own; ours would be inherited by a worker between fork and its set-up.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Prefork().run()
