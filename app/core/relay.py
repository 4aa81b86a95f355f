"""What a run says, heard in other processes while it is said: by whoever asked the same there and waits for it."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from time import monotonic
from typing import Any, Self
from uuid import uuid4

from app.core import kept_answer
from app.core.cache_key import CacheKey
from app.core.flights import Flight, Tell
from app.core.kept_answer import Generation
from app.core.run import Answer, RunEvent, TextDelta, ToolFinished, ToolStarted
from app.errors import StoreUnavailable, Unavailable
from app.stores.protocol import SharedStore

_log = logging.getLogger(__name__)

_LISTENERS = "listeners"
"""The topic under which everybody who waits posts, and the counter that says that there is somebody new."""
_SILENCE_S = 5.0
"""After so long without a sign whoever listens is taken to have gone, and whoever speaks to be dead."""
_SIGN_EVERY_S = 1.0
_TICK_S = 0.05
"""How often texts leave, how often they are looked for, and how often one looks for new listeners."""
_MOST_BYTES = 1024 * 1024
"""Of what one run says to others: about 250,000 tokens."""
_PIECE_CHARACTERS = 16 * 1024
_FAREWELL_S = 1.0
"""How long the end of a run waits for its last words to leave."""

_SAID, _ANSWERED, _FAILED = b"s", b"a", b"f"
"""What a piece of the log begins with: events in JSON; the answer as `kept_answer` writes it; nothing more."""

_Recall = Callable[[], Awaitable[Answer | None]]


class Relay:
    """The way from one process's runs to those who wait for them in others that have the same store.

    Nobody listens, nothing is sent: who waits in vain for a run that somebody else has begun posts that, and counts up
    a generation, which costs next to nothing to look at. Then what was said so far, and what comes, is written down in
    a log of the store, which lives only as long as its writer gives a sign. Whoever listens elsewhere is aboard: the
    run goes on where those who are here leave. Where the store is away nobody is heard, and all wait as they did.
    """

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._broadcasts: set[Broadcast] = set()
        self._ear: asyncio.Task[None] | None = None
        self._looked: int | None = None
        """The generation of listeners that was looked at last."""

    def moment(self) -> int | None:
        """To be taken before the right to run is: `broadcast` then overhears nobody who came since."""
        return self._store.generation(_LISTENERS)

    def broadcast(self, flight: Flight, key: CacheKey, generation: Generation, *, since: int | None) -> "Broadcast":
        """Let `flight` be heard by whoever came after the moment `since`; for the length of the broadcast's block."""
        broadcast = Broadcast(self._store, flight, key, generation)
        self._broadcasts.add(broadcast)
        self._looked = since
        if self._ear is None or self._ear.done():
            self._ear = _begin(self._listen(), name="relay-ear")
        return broadcast

    @asynccontextmanager
    async def open_reception(self, key: CacheKey, generation: Generation) -> AsyncGenerator["Reception"]:
        """What to listen with to the process that runs `key`; it costs nothing until it is used."""
        reception = Reception(self._store, key, generation)
        try:
            yield reception
        finally:
            await reception.aclose()

    async def aclose(self) -> None:
        """Stop looking for listeners, and what is still being said to them. The flights have ended before."""
        ending = [task for broadcast in self._broadcasts if (task := broadcast.speaker) is not None]
        if self._ear is not None:
            ending.append(self._ear)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _listen(self) -> None:
        look_again_at = 0.0
        while self._broadcasts:
            number, now = self._store.generation(_LISTENERS), monotonic()
            is_due = now >= look_again_at and any(broadcast.is_on for broadcast in self._broadcasts)
            if number is not None and (number != self._looked or is_due):
                look_again_at = now + _SIGN_EVERY_S
                with suppress(StoreUnavailable):
                    wanted = {member.partition(":")[0] for member in await self._store.posts(_LISTENERS)}
                    self._looked = number
                    for broadcast in self._broadcasts:
                        broadcast.be_wanted(broadcast.name in wanted)
            await asyncio.sleep(_TICK_S)
            self._broadcasts = {broadcast for broadcast in self._broadcasts if not broadcast.is_over}


class Broadcast:
    """One run as the others hear it, where somebody does; at the end of its block they hear what came of it."""

    def __init__(self, store: SharedStore, flight: Flight, key: CacheKey, generation: Generation) -> None:
        self.answer: Answer | None = None
        """What came of the run; to be set before the end, which otherwise is a failure."""
        self.speaker: asyncio.Task[None] | None = None
        self._store = store
        self._flight = flight
        self._key = key
        self._generation = generation
        self._has_ended = False
        self._is_too_long = False
        self._seat: ExitStack | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._has_ended = True
        if self.is_on:
            self._end.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._has_spoken.wait()

    @property
    def name(self) -> str:
        """What listeners call the run."""
        return self._key.digest.hex()

    @property
    def is_on(self) -> bool:
        """Whether somebody listens, or has listened and may come back."""
        return self.speaker is not None and not self.speaker.done()

    @property
    def is_over(self) -> bool:
        """Whether nothing more is said."""
        return self._has_ended and not self.is_on

    def be_wanted(self, wanted: bool) -> None:
        """Begin to speak where somebody listens, and pause where nobody does any more."""
        if self._has_ended:
            return
        if not wanted:
            self._leave()
            return
        if self._is_too_long:
            return
        if self._seat is None:
            self._seat = ExitStack()
            self._seat.enter_context(self._flight.seat())
        if not self.is_on:
            self._end, self._has_spoken = asyncio.Event(), asyncio.Event()
            self.speaker = _begin(self._speak(), name="relay-speaker")

    def _leave(self) -> None:
        seat, self._seat = self._seat, None
        if seat is not None:
            seat.close()

    async def _speak(self) -> None:
        try:
            try:
                is_whole = await self._send()
            finally:
                self._has_spoken.set()
            if is_whole:
                # To leave the last seat would end the run, which is about to end by itself.
                await asyncio.wait([self._flight.task])
        finally:
            self._leave()

    async def _send(self) -> bool:
        """Send all that was said and is still being said, and the end; `False` where that cannot be."""
        log = b"said:" + uuid4().bytes
        entry = {"key": self.name, "scope": self._key.scope, "generation": self._generation, "log": log.hex()}
        header = _write(entry)
        at = told = size = 0
        gave_sign_at = -_SIGN_EVERY_S
        while True:
            ended = self._has_ended
            # Where nobody listens it is enough that whoever comes finds the beginning, and is noticed.
            said = self._flight.said(after=told) if ended or self._seat is not None else []
            told += len(said)
            pieces = list(_pieces(said))
            size += sum(map(len, pieces))
            if size > _MOST_BYTES:
                self._is_too_long = ended = True
                pieces = [_FAILED]
            elif ended:
                pieces.append(self._last_words())
            if at or (pieces and not ended):
                gives_sign = monotonic() - gave_sign_at >= _SIGN_EVERY_S
                if (pieces or gives_sign) and not await self._append(log, pieces, at, header if gives_sign else None):
                    return False
                at += len(pieces)
                if gives_sign:
                    gave_sign_at = monotonic()
            if ended:
                with suppress(StoreUnavailable):
                    await self._store.delete(_header_of(self._key))  # whoever comes now has not heard the beginning
                return not self._is_too_long
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._end.wait()

    async def _append(self, log: bytes, pieces: Sequence[bytes], at: int, header: bytes | None) -> bool:
        give_up_at = monotonic() + _SILENCE_S
        while True:
            try:
                # Again with the very same pieces: it may have been done although that was not heard.
                if not await self._store.append(log, pieces, at=at, ttl_s=_SILENCE_S):
                    return False
                if header is not None:
                    await self._store.put(_header_of(self._key), header, ttl_s=_SILENCE_S)
            except StoreUnavailable:
                if monotonic() > give_up_at:
                    return False
                await asyncio.sleep(_TICK_S)
            else:
                return True

    def _last_words(self) -> bytes:
        if self.answer is None:
            return _FAILED
        value = kept_answer.write(self._key, self.answer, generation=self._generation, life_s=0.0)
        return _ANSWERED + value if len(value) <= 2 * _MOST_BYTES else _FAILED


class Reception:
    """What another process says about a question while this one waits for it."""

    def __init__(self, store: SharedStore, key: CacheKey, generation: Generation) -> None:
        self._store = store
        self._key = key
        self._generation = generation
        self._member = f"{key.digest.hex()}:{uuid4().hex}"
        self._posting: asyncio.Task[None] | None = None
        self._log = b""
        self._pieces: list[bytes] = []

    async def begins(self) -> bool:
        """Whether a run that is still under way elsewhere says something; the first call makes it known that one waits.

        A run is heard from its beginning or not at all.
        """
        if self._posting is None:
            self._posting = _begin(self._post(), name="relay-listener")
        try:
            value = await self._store.get(_header_of(self._key))
            if value is None or (log := self._log_of(value)) is None:
                return False
            pieces: list[bytes] = []
            while more := await self._store.read_on(log, at=len(pieces)):
                pieces += more
        except StoreUnavailable:
            return False
        if more is None or not pieces or not pieces[-1].startswith(_SAID):
            return False
        self._log, self._pieces = log, pieces
        return True

    async def follow(self, tell: Tell, recall: _Recall) -> Answer:
        """Pass on what is said until the answer is there; `recall` looks for it where answers are kept.

        Raises `Unavailable` where the run, its process or the way to it ends before that.
        """
        at, spoken = 0, ""
        while True:
            for piece in self._pieces:
                kind, rest = piece[:1], piece[1:]
                if kind == _SAID:
                    for event in _events(rest):
                        spoken += event.text if isinstance(event, TextDelta) else ""
                        tell(event)
                elif kind == _ANSWERED and (kept := kept_answer.read(rest, self._key)) is not None:
                    found = await recall()
                    return found if found is not None and found.id == kept.answer.id else kept.answer
                else:
                    raise _lost()
            at += len(self._pieces)
            if not self._pieces:
                await asyncio.sleep(_TICK_S)
            pieces = await self._read_on(at)
            if pieces is None:
                break
            self._pieces = pieces
        # The log is gone. What was kept in the end is the rest of what was said, or another run's answer.
        found = await recall()
        if found is None or not isinstance(found.output, str) or not found.output.startswith(spoken):
            raise _lost()
        if rest := found.output[len(spoken) :]:
            tell(TextDelta(rest))
        return found

    async def aclose(self) -> None:
        """Wait for nothing any more."""
        if self._posting is not None:
            self._posting.cancel()
            await asyncio.gather(self._posting, return_exceptions=True)
            with suppress(StoreUnavailable):
                await self._store.post(_LISTENERS, self._member, b"", ttl_s=0.001)

    async def _post(self) -> None:
        is_known = False
        while True:
            with suppress(StoreUnavailable):
                await self._store.post(_LISTENERS, self._member, b"", ttl_s=_SILENCE_S)
                if not is_known:
                    await self._store.bump(_LISTENERS)
                    is_known = True
            await asyncio.sleep(_SIGN_EVERY_S)

    async def _read_on(self, at: int) -> list[bytes] | None:
        give_up_at = monotonic() + _SILENCE_S
        while True:
            try:
                return await self._store.read_on(self._log, at=at)
            except StoreUnavailable:
                if monotonic() > give_up_at:
                    return None
                await asyncio.sleep(_TICK_S)

    def _log_of(self, header: bytes) -> bytes | None:
        """Where the run speaks whose header this is; `None` where it answers something, or somebody, else."""
        told: dict[str, Any] = json.loads(header)
        mine = (self._key.digest.hex(), self._key.scope, list(self._generation))
        return bytes.fromhex(told["log"]) if (told["key"], told["scope"], told["generation"]) == mine else None


def _begin(work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
    """A task whose failure is said: whoever it worked for then waits as without a relay, or hears nothing more."""

    def end(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("what a run says does not reach other processes", exc_info=error)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(end)
    return task


def _header_of(key: CacheKey) -> bytes:
    return b"speaks:" + key.digest


def _write(told: object) -> bytes:
    return json.dumps(told, separators=(",", ":")).encode()


def _pieces(events: Sequence[RunEvent]) -> Generator[bytes]:
    """Events as pieces of a log; texts that follow each other are one, and a long one is several."""
    told: list[object] = []
    texts: list[str] = []

    def end_text() -> Generator[bytes]:
        text = "".join(texts)
        texts.clear()
        while len(text) > _PIECE_CHARACTERS:
            told.append(text[:_PIECE_CHARACTERS])
            yield _SAID + _write(told)
            told.clear()
            text = text[_PIECE_CHARACTERS:]
        if text:
            told.append(text)

    for event in events:
        match event:
            case TextDelta(text):
                texts.append(text)
            case ToolStarted(call_id, tool):
                yield from end_text()
                told.append([call_id, tool])
            case ToolFinished(call_id, tool, succeeded):
                yield from end_text()
                told.append([call_id, tool, succeeded])
            case _:
                pass  # the beginning and the end are told by whoever listens
    yield from end_text()
    if told:
        yield _SAID + _write(told)


def _events(written: bytes) -> Generator[RunEvent]:
    told: list[str | list[Any]] = json.loads(written)
    for one in told:
        match one:
            case str():
                yield TextDelta(one)
            case [call_id, tool]:
                yield ToolStarted(call_id, tool)
            case [call_id, tool, succeeded]:
                yield ToolFinished(call_id, tool, succeeded)
            case _:
                pass


def _lost() -> Unavailable:
    return Unavailable("the run that this answer came from ended without the rest of it; ask again", retry_after_s=1)
