"""What replicas tell each other of their numbers, through the store that they share; the gone ones are counted on."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from time import time
from uuid import uuid4

from app.core.metrics import Snapshot, merge
from app.core.picture import Picture, packed, unpacked
from app.stores.protocol import SharedStore

_log = logging.getLogger(__name__)

_LIVE, _COUNTED = "numbers", "counted"
_LIVE_S = 6.0
"""So long after its last word a replica is taken for alive."""
_COUNTED_S = 600.0
"""So long what a gone replica counted is known when nobody is there who would say it on."""
_PAST = "past"
_GONE_ALONE = 8
"""More than so many gone replicas are merged into one."""
_LEASE_S = 10.0


@dataclass(frozen=True, slots=True)
class Gone:
    """What a replica had counted when it was last heard of, at `said_at`; `names` are those merged into it."""

    total: Snapshot
    started_at: float
    said_at: float
    names: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Bytes that `decode` reads."""
        return packed([self.total.plain(), self.started_at, self.said_at, self.names])

    @classmethod
    def decode(cls, data: bytes) -> "Gone":
        """What `encode` wrote. Raises `ValueError` for anything else."""
        total, started_at, said_at, names = unpacked(data)
        return cls(Snapshot.of_plain(total), started_at, said_at, tuple(names))


@dataclass(slots=True)
class Others:
    """The other replicas, by the name of their run: those that live, and those that have gone."""

    live: dict[str, Picture] = field(default_factory=dict[str, Picture])
    gone: dict[str, Gone] = field(default_factory=dict[str, Gone])


class Replicas:
    """This replica's place among all that share a store. Every method raises `StoreUnavailable`.

    A replica says twice what it has counted: as one that lives, for a few seconds, and as a run that may be gone when
    it is read. Whoever is not heard as the former is counted by the latter, so the numbers of a replica that ended, or
    was killed, stay, but for what it counted after its last word; and one that was only cut off is not counted twice
    when it is back. What the gone ones counted is said on by those who live, and ends with the last of them.
    """

    def __init__(self, store: SharedStore, *, machine: str, run: str, clock: Callable[[], float] = time) -> None:
        self._store = store
        self._machine = machine
        self._run = run
        self._clock = clock
        self._owner = uuid4().hex
        self._known: dict[bytes, Gone] = {}

    async def say(self, own: Picture) -> None:
        """Tell the others what this machine has counted up to now."""
        await self.say_last(own)
        value = await asyncio.to_thread(packed, [self._run, own.plain()])
        await self._store.post(_LIVE, self._machine, value, ttl_s=_LIVE_S)

    async def say_last(self, own: Picture) -> None:
        """The same, for when this replica is gone."""
        value = await asyncio.to_thread(Gone(own.total, own.started_at, self._clock()).encode)
        await self._store.post(_COUNTED, self._name, value, ttl_s=_COUNTED_S)

    async def hear(self) -> Others:
        """What all others have counted, each once."""
        return (await self._hear())[0]

    async def keep(self) -> None:
        """Have what the gone ones counted known for longer; to be done by somebody every few minutes."""
        others, _ = await self._hear()
        if len(others.gone) > _GONE_ALONE and await self._store.claim(b"counted", self._owner, ttl_s=_LEASE_S):
            # Anew: what somebody merged before the lease was ours must be in what we merge.
            others, said = await self._hear()
            silent = self._clock() - _COUNTED_S
            merged = {name: it for name, it in others.gone.items() if name == _PAST or it.said_at < silent}
            if merged:
                others.gone = {name: it for name, it in others.gone.items() if name not in merged}
                others.gone[_PAST] = _merged(merged, said)
        for name, it in others.gone.items():
            await self._store.post(_COUNTED, name, it.encode(), ttl_s=_COUNTED_S)

    @property
    def _name(self) -> str:
        return f"{self._machine}.{self._run}"

    async def _hear(self) -> tuple[Others, Set[str]]:
        """The others, and every name under which something is said."""
        live, counted = await self._store.posts(_LIVE), await self._store.posts(_COUNTED)
        return await asyncio.to_thread(self._others, live, counted)

    def _others(self, live: Mapping[str, bytes], counted: Mapping[str, bytes]) -> tuple[Others, Set[str]]:
        others = Others()
        for machine, value in live.items():
            if machine == self._machine:
                continue
            try:
                run, plain = unpacked(value)
                others.live[f"{machine}.{run}"] = Picture.of_plain(plain)
            except (ValueError, TypeError, LookupError):
                _log.warning("the replica %s speaks another version; its numbers are left out", machine)
        gone = self._decoded(counted)
        merged = gone[_PAST].names if _PAST in gone else ()
        there = {self._name, *others.live, *merged}
        others.gone = {name: it for name, it in gone.items() if name not in there}
        return others, counted.keys()

    def _decoded(self, said: Mapping[str, bytes]) -> dict[str, Gone]:
        found: dict[str, Gone] = {}
        known: dict[bytes, Gone] = {}
        for name, value in said.items():
            try:
                # Most of them never change again.
                found[name] = known[value] = self._known.get(value) or Gone.decode(value)
            except (ValueError, TypeError, LookupError):
                _log.warning("the replica %s spoke another version; its numbers are left out", name)
        self._known = known
        return found


def _merged(gone: Mapping[str, Gone], said: Set[str]) -> Gone:
    """All of them as one. It knows their names as long as they are `said`, and would be counted again."""
    names = [name for it in gone.values() for name in it.names if name in said]
    names += [name for name in gone if name != _PAST]
    started_at = min(it.started_at for it in gone.values())
    said_at = max(it.said_at for it in gone.values())
    return Gone(merge(it.total for it in gone.values()), started_at, said_at, tuple(names))
