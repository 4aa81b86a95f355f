"""A TCP proxy that stands between us and Redis, PostgreSQL or a provider, and misbehaves on command."""

import asyncio
import random
import socket
import struct
from contextlib import suppress
from typing import Literal, Self, assert_never, get_args

Fault = Literal["pass", "latency", "hang", "blackhole", "refuse", "cut", "half-close", "slice", "garbage"]

_FAULTS: tuple[Fault, ...] = get_args(Fault)
_CHUNK = 65536


class FaultProxy:
    """Forwards connections to a target, in the present `mode`; open between `async with`.

    | mode         | new connections      | questions (to the target) | answers (to the client)                       |
    |--------------|----------------------|---------------------------|-----------------------------------------------|
    | `pass`       | forwarded            | forwarded                 | forwarded                                     |
    | `latency:MS` | forwarded            | forwarded                 | each arrives MS milliseconds later            |
    | `hang`       | accepted             | kept                      | kept; what was kept goes on in a later mode   |
    | `blackhole`  | accepted, for naught | thrown away               | thrown away                                   |
    | `refuse`     | refused              | all open connections are reset at once                                    |
    | `cut`        | forwarded            | forwarded                 | the next ends in its middle, and so does all  |
    | `half-close` | forwarded            | forwarded                 | end at once, while questions may still come   |
    | `slice`      | forwarded            | one byte at a time        | one byte at a time                            |
    | `garbage`    | forwarded            | forwarded                 | random bytes, as many as the answer had       |

    The mode may be changed at any time, on open connections too.
    """

    def __init__(self, target_host: str, target_port: int, *, mode: str = "pass", seed: int = 0) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.accepted = 0
        """Connections accepted so far."""
        self._target = target_host, target_port
        self._fault: Fault
        self._fault, self._latency_s = _parsed(mode)
        self._changed = asyncio.Event()
        self._random = random.Random(seed)
        self._socket: socket.socket | None = None
        self._links: set[_Link] = set()

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop_listening()
        tasks = [link.task for link in self._links]
        for link in list(self._links):
            link.reset()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def open_connections(self) -> int:
        """Connections that neither side has ended."""
        return len(self._links)

    @property
    def mode(self) -> str:
        """What happens to connections now; see the class. An unknown mode raises `ValueError`."""
        return f"latency:{self._latency_s * 1000:g}" if self._fault == "latency" else self._fault

    @mode.setter
    def mode(self, mode: str) -> None:
        refused = self._fault == "refuse"
        self._fault, self._latency_s = _parsed(mode)
        self._changed.set()
        self._changed = asyncio.Event()
        if self._socket and refused != (self._fault == "refuse"):
            self._stop_listening()
            self._listen()
        for link in self._links:
            if self._fault == "refuse":
                link.reset()
            elif self._fault == "half-close":
                link.end_answers()

    def _listen(self) -> None:
        """Take the port, and accept connections unless they are to be refused.

        Not a server of asyncio, since that cannot stop and start without an `await` in between.
        """
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setblocking(False)
        self._socket.bind((self.host, self.port))
        self.port = self._socket.getsockname()[1]
        if self._fault != "refuse":  # a socket that is bound but does not listen refuses, and keeps its port
            self._socket.listen(1024)
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _stop_listening(self) -> None:
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _accept(self) -> None:
        assert self._socket
        try:
            accepted, _ = self._socket.accept()
        except OSError:  # the client has gone already
            return
        self.accepted += 1
        accepted.setblocking(False)
        link = _Link(self, accepted, self._target)
        self._links.add(link)
        link.task.add_done_callback(lambda _: self._links.discard(link))

    # What a link asks.

    async def passage(self) -> Fault:
        """Return the fault in force, as soon as it is one that lets something happen."""
        while self._fault == "hang":
            await self._changed.wait()
        return self._fault

    async def delay(self) -> None:
        """Wait for the latency, or until the mode changes."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), self._latency_s)

    def garbage(self, size: int) -> bytes:
        """Return random bytes."""
        return self._random.randbytes(size)


class _Cut(Exception):
    """The connection is to end here, with what was sent so far."""


class _Link:
    """One connection of a client, and ours to the target."""

    def __init__(self, proxy: FaultProxy, accepted: socket.socket, target: tuple[str, int]) -> None:
        self.task = asyncio.create_task(self._run(target))
        self._proxy = proxy
        self._accepted = accepted
        self._client: asyncio.StreamWriter | None = None
        self._answers_ended = False

    def reset(self) -> None:
        """End the client's connection with RST."""
        if not self.task.done():
            self._send_reset()
            self.task.cancel()

    def end_answers(self) -> None:
        """Send FIN to the client, which may go on sending."""
        self._answers_ended = True
        if self._client and not self._client.is_closing():
            self._client.write_eof()

    async def _run(self, target: tuple[str, int]) -> None:
        server: asyncio.StreamWriter | None = None
        try:
            questions, self._client = await asyncio.open_connection(sock=self._accepted)
            if self._proxy.mode == "blackhole":
                while await questions.read(_CHUNK):
                    continue
                return
            answers, server = await asyncio.open_connection(*target)
            if self._proxy.mode == "half-close":
                self.end_answers()
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(self._carry_questions(questions, server))
                both_ways.create_task(self._carry_answers(answers, self._client))
        except* _Cut:
            pass
        except* OSError:  # one side reset its connection, or the target refused ours: pass it on
            self._send_reset()
        finally:
            if server:
                server.transport.abort()
            if self._client:
                self._client.close()
            else:
                self._accepted.close()

    async def _carry_questions(self, source: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            match await self._proxy.passage():
                case "blackhole":
                    continue
                case "slice":
                    await _write_slowly(server, data)
                case _:
                    server.write(data)
            await server.drain()
        server.write_eof()

    async def _carry_answers(self, source: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            fault = await self._proxy.passage()
            if fault == "latency":
                await self._proxy.delay()
            if self._answers_ended:
                continue
            match fault:
                case "pass" | "latency":
                    client.write(data)
                case "blackhole" | "half-close" | "refuse":  # refused: this task is about to be cancelled
                    continue
                case "cut":
                    client.write(data[: len(data) // 2])
                    raise _Cut
                case "slice":
                    await _write_slowly(client, data)
                case "garbage":
                    client.write(self._proxy.garbage(len(data)))
                case "hang":
                    raise AssertionError("passage() waits until it is over")
                case _:
                    assert_never(fault)
            await client.drain()
        self.end_answers()

    def _send_reset(self) -> None:
        with suppress(OSError):  # closed already
            # Without lingering, closing sends RST instead of FIN.
            self._accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self._client:
            self._client.transport.abort()


async def _write_slowly(writer: asyncio.StreamWriter, data: bytes) -> None:
    for at in range(len(data)):
        writer.write(data[at : at + 1])
        await writer.drain()
        await asyncio.sleep(0)  # let a reader in this loop see the single byte


def _parsed(mode: str) -> tuple[Fault, float]:
    """Return the fault and the latency in seconds."""
    name, _, milliseconds = mode.partition(":")
    for fault in _FAULTS:
        if fault == name and (fault == "latency") == bool(milliseconds):
            return fault, float(milliseconds or 0) / 1000
    raise ValueError(f"no mode {mode!r}; there are: {', '.join(_FAULTS)} (latency as latency:20, in milliseconds)")
