"""Who stands at the listening socket while the application is still being loaded."""

import json
import os
import selectors
import socket
import threading
from contextlib import suppress

from app import __version__

_MAX_KEPT = 512
"""Beyond these, connections wait in the kernel, as they did before."""
_LONGEST_HEAD = 4096
_LIVEZ = b"GET /livez "
_READINESS = (b"GET /readyz ", b"GET /health ")
_ALIVE = json.dumps({"status": "alive"}, separators=(",", ":")).encode()
_STARTING = json.dumps(
    {"status": "starting", "reason": "server", "shared_store": "down", "version": __version__, "uptime_seconds": 0},
    separators=(",", ":"),
).encode()


class Doorman:
    """Answers health checks on `listener`, and keeps every other connection for the server that is to come.

    What a client has sent is only looked at, so a connection that is kept is as if nobody had touched it. A probe
    hears the truth a second and more before the agents are loaded: alive, and not ready. A thread, from `start()` to
    `leave()`; it must have left before the process forks.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._kept: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._bell, self._hand = socket.socketpair()
        self._thread = threading.Thread(target=self._stand, name="doorman", daemon=True)

    def start(self) -> None:
        """Begin to take connections."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread.start()

    def leave(self) -> list[socket.socket]:
        """Take no further connection; gives those that were kept, which now are the caller's."""
        self._hand.send(b"!")
        self._thread.join()
        for one in (self._selector, self._bell, self._hand):
            one.close()
        kept, self._kept = list(self._kept.values()), {}
        return kept

    def _stand(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._bell:
                    return
                if key.fileobj is self._listener:
                    self._take()
                else:
                    self._look(self._kept[key.fd])

    def _take(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # gone again, or no descriptor left: whoever waits goes on waiting
        client.setblocking(False)
        self._kept[client.fileno()] = client
        self._selector.register(client, selectors.EVENT_READ)
        if len(self._kept) >= _MAX_KEPT:
            self._selector.unregister(self._listener)

    def _look(self, client: socket.socket) -> None:
        try:
            head = client.recv(_LONGEST_HEAD, socket.MSG_PEEK)
        except OSError:
            head = b""
        if not head:
            self._let_go(client)
        elif head.startswith((_LIVEZ, *_READINESS)) and head.endswith(b"\r\n\r\n"):
            response = _response("200 OK", _ALIVE) if head.startswith(_LIVEZ) else _not_ready()
            with suppress(OSError):
                client.recv(len(head))
                client.send(response)
            self._let_go(client)
        else:
            # For the server. More than a look would not say more, so it is not looked at again.
            self._selector.unregister(client)

    def _let_go(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._kept[client.fileno()]
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        client.close()
        if self._listener.fileno() not in self._selector.get_map():
            self._selector.register(self._listener, selectors.EVENT_READ)


def _not_ready() -> bytes:
    return _response("503 Service Unavailable", _STARTING, "retry-after: 1\r\n")


def _response(status: str, body: bytes, headers: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}"
        "cache-control: no-store\r\nx-content-type-options: nosniff\r\nx-frame-options: DENY\r\n"
        f"x-request-id: {os.urandom(16).hex()}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
