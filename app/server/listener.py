"""The listening socket: bound before anything else happens, and closed without losing who stands before it."""

import asyncio
import ctypes
import errno
import select
import socket
import struct
import sys

from app.errors import BadConfiguration

BACKLOG = 2048

_SO_ATTACH_FILTER = 26
# Classic BPF over the TCP header: drop what has SYN and not ACK, keep everything else.
_DROP_NEWCOMERS = struct.pack(
    "HBBI" * 5,
    *(0x30, 0, 0, 13),  # load the byte with the flags
    *(0x54, 0, 0, 0x12),  # keep SYN and ACK of it
    *(0x15, 0, 1, 0x02),  # SYN alone?
    *(0x06, 0, 0, 0),  # drop
    *(0x06, 0, 0, 0xFFFFFFFF),  # keep
)


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
        listener.listen(BACKLOG)
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


def turn_newcomers_away(listener: socket.socket) -> None:
    """Let no further connection begin on `listener`; those that have begun stay and can be accepted.

    A connection that is complete and not accepted is reset when its listener is closed, and its client may have sent
    a whole request by then. With this first, whoever accepts until nobody waits may close without losing anyone:
    a client that comes later gets no answer to its SYN, repeats it after a second, and is refused. The filter
    belongs to the socket, so it holds in all processes that share it. Only Linux has it; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(_DROP_NEWCOMERS, len(_DROP_NEWCOMERS))
    fprog = struct.pack("HP", len(_DROP_NEWCOMERS) // 8, ctypes.addressof(program))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def is_readable(fd: int) -> bool:
    """Whether a read (or an accept) on `fd` would give something now."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


async def until_nobody_waits(listener: socket.socket, *, at_most_s: float = 1.0) -> None:
    """Wait while a server accepts what is left on `listener`; a tenth of a second for handshakes under way."""
    loop = asyncio.get_running_loop()
    quiet_from = loop.time() + 0.1
    end = loop.time() + at_most_s
    while loop.time() < end:
        if not is_readable(listener.fileno()) and loop.time() >= quiet_from:
            return
        await asyncio.sleep(0.01)
