"""The shared store of all replicas: one Redis, or what speaks its language (Valkey)."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha1
from importlib.resources import files
from itertools import count
from secrets import randbelow
from struct import pack
from time import monotonic
from typing import Any, Literal
from zlib import crc32

from app.errors import StoreUnavailable
from app.stores.board import place_of
from app.stores.meters import SLACK, judge
from app.stores.protocol import PIECES_AT_ONCE, Counter, StoreNumbers, Verdict
from app.stores.redis_link import NoScript, RedisLink

_log = logging.getLogger(__name__)

LEASE_S = 0.5
"""How long what a poll told is trusted, from before it was asked. Revoking and clearing take this long."""
_MARGIN_S = 0.05
_POLL_EVERY_S = 0.1
_PROBE_VALUE = b"x" * 4096
"""What a probe writes: more than a poll, so that a Redis that cannot be written to is not taken for well."""
_SCRIPTS = ("take", "claim", "release", "generations", "post", "posts", "append", "read_on")


class _Script:
    """A Lua script of this package."""

    def __init__(self, name: str) -> None:
        self.text = (files("app.stores") / "lua" / f"{name}.lua").read_bytes()
        self.sha = sha1(self.text, usedforsecurity=False).hexdigest()


class RedisStore:
    """`SharedStore` in Redis. An outage is a `StoreUnavailable` within 0.3 s (`patience`), and after five at once.

    Every answer is proven to belong to its question: entries carry a checksum over key and value, scripts give back
    a nonce. Generations are polled ten times a second and trusted for `LEASE_S` from before each poll, so that
    `bump`, which waits for that long, can promise that nobody trusts what was learnt before, whatever the network
    did. A Redis that lost its data, or increments, begins a new epoch: no generation ever comes back.
    """

    kind: Literal["redis"] = "redis"

    def __init__(self, url: str, *, prefix: str = "mnemosine:", connections: int = 64) -> None:
        """Touch no network yet; every key begins with `prefix`. Raises `BadConfiguration`."""
        self._prefix = prefix.encode()
        self._link = RedisLink(url, connections=connections)
        self._scripts = {name: _Script(name) for name in _SCRIPTS}
        self._nonces = count(randbelow(2**32))
        self._keeper: asyncio.Task[None] | None = None
        self._epoch = b""
        self._counted: dict[int, int] = {}
        self._trusted_until = 0.0
        self._bumped_at = 0.0

    async def start(self) -> None:
        """Look whether Redis is there, and keep looking; one that is away is no error, and the link says it once."""
        with suppress(StoreUnavailable):
            await self._poll()
        self._keeper = asyncio.create_task(self._keep_polling(), name="redis-generations")

    async def get(self, key: bytes) -> bytes | None:
        """See `SharedStore.get`."""
        name = self._name(b"entry:", key)
        stored: bytes | None = await self._link.call(
            "GET", name, check=lambda answer: answer is None or _sealed(name, answer)
        )
        return None if stored is None else stored[4:]

    async def put(self, key: bytes, value: bytes, *, ttl_s: float) -> None:
        """See `SharedStore.put`."""
        name = self._name(b"entry:", key)
        await self._link.call("SET", name, _seal(name, value), "PX", _ms(ttl_s), check=lambda answer: answer == b"OK")

    async def delete(self, key: bytes) -> None:
        """See `SharedStore.delete`."""
        await self._link.call("DEL", self._name(b"entry:", key), check=lambda answer: answer in (0, 1))

    async def claim(self, key: bytes, owner: str, *, ttl_s: float) -> bool:
        """See `SharedStore.claim`."""
        (got,) = await self._run("claim", self._name(b"lease:", key), owner, _ms(ttl_s))
        return got == 1

    async def release(self, key: bytes, owner: str) -> None:
        """See `SharedStore.release`."""
        await self._run("release", self._name(b"lease:", key), owner)

    async def take(self, key: bytes, *, cost: int = 1, limit: int, window_s: float, force: bool = False) -> Verdict:
        """See `SharedStore.take`; the clock is that of Redis, and to set it bans nobody."""
        step_s = window_s / limit
        used, taken = await self._run(
            "take", self._name(b"meter:", key), cost, repr(step_s), repr(float(window_s)), repr(step_s * SLACK), +force
        )
        # The script has decided; this is the same arithmetic in the caller's words.
        return judge(float(used), cost=cost, limit=limit, window_s=window_s, force=force or taken == 1)

    def take_at_once(self, key: bytes, *, cost: int, limit: int, window_s: float) -> Verdict | None:
        """See `SharedStore.take_at_once`; a network always makes one wait."""
        return None

    def generation(self, counter: Counter) -> int | None:
        """See `SharedStore.generation`."""
        if monotonic() >= self._trusted_until:
            return None
        return int(self._epoch) + self._counted.get(place_of(counter), 0)

    async def bump(self, counter: Counter) -> int:
        """See `SharedStore.bump`; it takes `LEASE_S`, since others may trust for that long what they learnt before."""
        place = place_of(counter)
        epoch, counted = _counters(await self._run("generations", self._name(b"generations"), _epoch(), "", place))
        self._bumped_at = monotonic()
        if epoch == self._epoch:
            self._learn(counted)
        else:
            self._trusted_until = 0.0
        await asyncio.sleep(LEASE_S + _MARGIN_S)
        return int(epoch) + counted[place]

    async def post(self, topic: str, member: str, value: bytes, *, ttl_s: float) -> None:
        """See `SharedStore.post`."""
        name = self._name(b"posts:", topic.encode())
        await self._run("post", name, member, _seal(name + member.encode(), value), _ms(ttl_s))

    async def posts(self, topic: str) -> dict[str, bytes]:
        """See `SharedStore.posts`."""
        name = self._name(b"posts:", topic.encode())
        told = await self._run("posts", name)
        pairs = zip(told[::2], told[1::2], strict=True)
        return {member.decode(): value[4:] for member, value in pairs if _sealed(name + member, value)}

    async def append(self, key: bytes, pieces: Sequence[bytes], *, at: int, ttl_s: float) -> bool:
        """See `SharedStore.append`."""
        name = self._name(b"log:", key)
        (is_whole,) = await self._run("append", name, at, _ms(ttl_s), *(_seal(name, piece) for piece in pieces))
        return is_whole == 1

    async def read_on(self, key: bytes, *, at: int) -> list[bytes] | None:
        """See `SharedStore.read_on`."""
        name = self._name(b"log:", key)
        length, *pieces = await self._run("read_on", name, at, at + PIECES_AT_ONCE - 1)
        if not length or not all(_sealed(name, piece) for piece in pieces):
            return None
        return [piece[4:] for piece in pieces]

    async def ping(self) -> None:
        """See `SharedStore.ping`. Writes, since a full Redis still answers who only reads."""
        await self._link.call("SET", self._prefix + b"ping", b"", "PX", 1000, check=lambda answer: answer == b"OK")
        self._link.writes_again()

    def numbers(self) -> StoreNumbers:
        """See `SharedStore.numbers`."""
        link = self._link
        away = link.breaker.is_open or monotonic() >= self._trusted_until
        state = "down" if away else "up" if link.refusal is None else "read-only"
        return StoreNumbers(state, link.calls, link.failures, link.refused)

    async def aclose(self) -> None:
        """See `SharedStore.aclose`."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._trusted_until = 0.0
        await self._link.aclose()

    async def _keep_polling(self) -> None:
        breaker = self._link.breaker
        while True:
            await asyncio.sleep(max(_POLL_EVERY_S, breaker.probe_in_s))
            was_open, calls = breaker.is_open, self._link.calls
            try:
                await self._poll()
                if was_open or self._link.refusal is not None:
                    name = self._name(b"probe")
                    await self._link.probe("SET", name, _PROBE_VALUE, "PX", 1000, check=lambda answer: answer == b"OK")
                    self._link.writes_again()
            except (StoreUnavailable, LookupError, ValueError):
                if was_open:
                    breaker.probe_failed()
                continue
            if was_open and breaker.close():
                _log.warning("Redis is back")
            elif calls == self._link.calls:
                # Calls know better whether calls succeed; where there are none, this is what is known.
                breaker.succeeded()

    async def _poll(self) -> None:
        """Learn the generations; past the breaker, since this is what finds out that Redis is back."""
        asked_at = monotonic()
        name = self._name(b"generations")
        epoch, counted = _counters(await self._run("generations", name, _epoch(), "", "", probing=True))
        lost = epoch == self._epoch and any(counted.get(place, 0) < known for place, known in self._counted.items())
        if lost and asked_at > self._bumped_at:
            # A replica that had not heard of all took over: what it counts from here on was used before.
            epoch, counted = _counters(await self._run("generations", name, _epoch(), epoch, "", probing=True))
        if epoch != self._epoch:
            if asked_at < self._bumped_at:
                return  # The next poll tells what is known since.
            self._epoch, self._counted = epoch, {}
        self._learn(counted)
        self._trusted_until = max(self._trusted_until, asked_at + LEASE_S)

    def _learn(self, counted: dict[int, int]) -> None:
        for place, number in counted.items():
            if number > self._counted.get(place, 0):
                self._counted[place] = number

    async def _run(self, script: str, name: bytes, *arguments: bytes | str | int, probing: bool = False) -> list[Any]:
        """What a script gives for one key, without the nonce that proves that it is this call's."""
        nonce = b"%d" % next(self._nonces)
        ask = self._link.probe if probing else self._link.call
        lua = self._scripts[script]

        def ours(answer: Any) -> bool:
            return isinstance(answer, list) and answer[:1] == [nonce]

        try:
            answer: list[Any] = await ask("EVALSHA", lua.sha, 1, name, nonce, *arguments, check=ours)
        except NoScript:
            answer = await ask("EVAL", lua.text, 1, name, nonce, *arguments, check=ours)
        return answer[1:]

    def _name(self, kind: bytes, key: bytes = b"") -> bytes:
        return self._prefix + kind + key


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _seal(name: bytes, value: bytes) -> bytes:
    return pack("<I", crc32(value, crc32(name))) + value


def _sealed(name: bytes, stored: Any) -> bool:
    return isinstance(stored, bytes) and stored[:4] == pack("<I", crc32(memoryview(stored)[4:], crc32(name)))


def _epoch() -> str:
    """The beginning of new generations: far from every other with all but certainty, and exact in JSON."""
    return str(2**40 + randbelow(2**52))


def _counters(told: Sequence[bytes]) -> tuple[bytes, dict[int, int]]:
    hashed = dict(zip(told[::2], told[1::2], strict=True))
    return hashed.pop(b"epoch"), {int(place): int(number) for place, number in hashed.items()}
