"""One answer for one `Idempotency-Key`: whoever asks again gets it, and nothing runs a second time."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from time import monotonic
from uuid import uuid4

from app.core.run import Caller
from app.db.async_session import Database
from app.db.kept_replies import (
    KeptReplyRow,
    claim_reply,
    delete_expired_replies,
    find_reply,
    free_reply,
    keep_reply,
    renew_claim,
)
from app.errors import Conflict, MnemosineError, Overloaded, Unavailable

_log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

_BATCH = 500


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Which request this is: the same `id` is the same key of the same caller on the same route."""

    id: str
    user_id: str
    request_digest: str


def request_key(caller: Caller, route: str, key: str, body: bytes) -> RequestKey:
    """The identity of a request. API keys are told apart, since one may be for fewer agents than another."""
    whose = "\0".join((caller.id, caller.key_id or "", route, key))
    return RequestKey(sha256(whose.encode()).hexdigest(), caller.id, sha256(body).hexdigest())


class Recording:
    """A response while it comes into being, for any number of readers; the last piece is held back until `end()`."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.pieces: list[bytes] = []
        self.replayed = False
        """Whether it was made for an earlier request."""
        self.tail = b""
        """What is held back."""
        self._ended = False
        self._error: BaseException | None = None
        self._news = asyncio.Event()

    @property
    def body(self) -> bytes:
        """All of it, also what is held back."""
        return b"".join((*self.pieces, self.tail))

    def begin(self, status: int, headers: Headers) -> None:
        """The head of the response."""
        self.status = status
        self.headers = headers
        self._tell()

    def add(self, piece: bytes, *, last: bool) -> None:
        """The next piece of the body."""
        if last:
            self.tail += piece
        elif piece:
            self.pieces.append(piece)
            self._tell()

    def end(self) -> None:
        """It is complete, and as safe as it will be."""
        if self.tail:
            self.pieces.append(self.tail)
            self.tail = b""
        self._ended = True
        self._tell()

    def fail(self, error: BaseException) -> None:
        """It will never be complete; every reader gets `error`."""
        self._error = error
        self._tell()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._ended or self._error is not None

    async def head(self) -> None:
        """Wait for status and headers. Raises what prevented them."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._news.wait()

    async def read(self) -> AsyncGenerator[tuple[bytes, bool]]:
        """Each piece of the body, and whether more will come. Raises what cut it short."""
        at = 0
        while True:
            while at < len(self.pieces):
                at += 1
                more = not self._ended or at < len(self.pieces)
                yield self.pieces[at - 1], more
                if not more:
                    return
            if self._error is not None:
                raise self._error
            if self._ended:
                yield b"", False
                return
            await self._news.wait()

    def _tell(self) -> None:
        told, self._news = self._news, asyncio.Event()
        told.set()


Run = Callable[[Recording], Awaitable[tuple[Headers, bytes] | None]]
"""Fill a recording; gives the headers and the body that are worth keeping of it, or `None`."""


class Idempotency:
    """Requests with an `Idempotency-Key`, each answered once by whichever worker or replica came first.

    The run belongs to the key and not to a connection: a client that gave up and asks again finds it going on, or
    done. Who runs is decided in the database by a lease that the runner renews, so nothing is held meanwhile and a
    runner that died is replaced within `lease_s`. Answers worth keeping live for `keep_s`; a run that failed frees
    its key.
    """

    def __init__(
        self,
        database: Database,
        *,
        lease_s: float = 30.0,
        keep_s: float = 86_400.0,
        wait_s: float = 660.0,
        poll_s: float = 0.25,
        max_running: int = 1000,
        max_body_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        self._database = database
        self._lease_s = lease_s
        self._keep_s = keep_s
        self._wait_s = wait_s
        self._poll_s = poll_s
        self._max_running = max_running
        self._max_body_bytes = max_body_bytes
        self._running: dict[tuple[str, str], tuple[Recording, asyncio.Task[None]]] = {}

    def answer(self, key: RequestKey, run: Run) -> tuple[Recording, bool]:
        """The one response of this request, and whether somebody else's run is joined.

        `run` is called only where no response is kept, and nobody else, in whichever process, is making it. The
        recording fails with `Conflict` where the key was used with another body.
        """
        place = (key.id, key.request_digest)
        under_way = self._running.get(place)
        # One that is over was kept, or it failed and nobody else shall have it.
        if under_way is not None and not under_way[0].is_over:
            return under_way[0], True
        if len(self._running) >= self._max_running:
            raise Overloaded("too many requests with an Idempotency-Key are under way", retry_after_s=5.0)
        recording = Recording()
        task = asyncio.create_task(self._settle(key, recording, run), name="idempotent-request")
        self._running[place] = recording, task

        def forget(_: asyncio.Task[None]) -> None:
            if self._running.get(place) == (recording, task):
                del self._running[place]

        task.add_done_callback(forget)
        return recording, False

    async def aclose(self) -> None:
        """End what is under way and free its keys."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def clean_up(self) -> int:
        """Remove what has expired, in batches that leave room for others; gives how many those were."""
        removed = 0
        while True:
            async with self._database.write() as session:
                gone = await delete_expired_replies(session, now=datetime.now(UTC), at_most=_BATCH)
            removed += gone
            if gone < _BATCH:
                return removed

    async def _settle(self, key: RequestKey, recording: Recording, run: Run) -> None:
        try:
            owner = uuid4().hex
            row = await self._claim(key, owner)
            if row.status is not None:
                recording.replayed = True
                recording.begin(
                    row.status, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in row.headers or ()]
                )
                recording.add(row.body or b"", last=True)
            else:
                await self._run(key, owner, recording, run)
            recording.end()
        except asyncio.CancelledError:
            recording.fail(Unavailable("the server is shutting down; ask again"))
            raise
        except Exception as error:
            # The readers raise it where they are; here nobody would hear of it.
            recording.fail(error)

    async def _claim(self, key: RequestKey, owner: str) -> KeptReplyRow:
        """Wait until the request is ours to answer, or answered. Raises `Conflict` for another body."""
        deadline = monotonic() + self._wait_s
        while True:
            row = await self._try_to_claim(key, owner)
            if row.request_digest != key.request_digest:
                raise Conflict(
                    "this Idempotency-Key was used with another body; a new request needs a new key",
                    retry_useful=False,
                )
            if row.owner == owner or row.status is not None:
                return row
            while row is not None and row.status is None and row.owned_until > datetime.now(UTC):
                if monotonic() > deadline:
                    raise Unavailable("the first request with this Idempotency-Key is still running", retry_after_s=10)
                await asyncio.sleep(self._poll_s)
                async with self._database.read() as session:
                    row = await find_reply(session, key.id)

    async def _try_to_claim(self, key: RequestKey, owner: str) -> KeptReplyRow:
        now = datetime.now(UTC)
        wanted = KeptReplyRow(
            id=key.id,
            user_id=key.user_id,
            request_digest=key.request_digest,
            owner=owner,
            owned_until=now + timedelta(seconds=self._lease_s),
            expires_at=now + timedelta(seconds=self._keep_s),
        )
        async with self._database.write() as session:
            return await claim_reply(session, wanted, now=now)

    async def _run(self, key: RequestKey, owner: str, recording: Recording, run: Run) -> None:
        kept = False
        try:
            async with self._renewing(key, owner):
                worth_keeping = await run(recording)
            if worth_keeping is not None:
                kept = await self._keep(key, owner, recording.status, *worth_keeping)
        finally:
            if not kept:
                await self._free(key, owner)

    async def _keep(self, key: RequestKey, owner: str, status: int, headers: Headers, body: bytes) -> bool:
        if len(body) > self._max_body_bytes:
            _log.warning("an answer of %d bytes is too large to be kept for its Idempotency-Key", len(body))
            return False
        try:
            async with self._database.write() as session:
                kept = await keep_reply(
                    session,
                    key.id,
                    owner=owner,
                    status=status,
                    headers=[[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers],
                    body=body,
                    expires_at=datetime.now(UTC) + timedelta(seconds=self._keep_s),
                )
        except MnemosineError as error:
            # The answer is there, and to withhold it would make the client ask for a second run.
            _log.warning("an answer could not be kept for its Idempotency-Key: %s", error.detail)
            return False
        if not kept:
            _log.warning("a request with an Idempotency-Key was taken over while it ran; its lease was not renewed")
        return True

    async def _free(self, key: RequestKey, owner: str) -> None:
        try:
            async with self._database.write() as session:
                await free_reply(session, key.id, owner=owner)
        except MnemosineError as error:
            _log.warning("an Idempotency-Key is free only when its lease ends: %s", error.detail)

    @asynccontextmanager
    async def _renewing(self, key: RequestKey, owner: str) -> AsyncGenerator[None]:
        renewing = asyncio.create_task(self._renew(key, owner), name="idempotency-lease")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, key: RequestKey, owner: str) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            until = datetime.now(UTC) + timedelta(seconds=self._lease_s)
            try:
                async with self._database.write() as session:
                    await renew_claim(session, key.id, owner=owner, owned_until=until)
            except MnemosineError:
                continue
