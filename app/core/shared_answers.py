"""The answers that the processes of a shared store have together, and whose turn it is to ask a model for one."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import time
from typing import Literal
from uuid import uuid4

from app.core import kept_answer
from app.core.cache_key import CacheKey
from app.core.kept_answer import Generation
from app.core.relay import Reception, Relay
from app.core.run import Answer
from app.errors import StoreUnavailable
from app.stores.protocol import SharedStore

_LEASE_S = 5.0
"""How long another process may be silent about a run before this one asks the model itself."""
_NOTHING_KEPT = b"-"
"""Stands for a moment where an answer would be: the run ended without one that may be kept."""


@dataclass(frozen=True, slots=True)
class SharedAnswer:
    """An answer as the store keeps it."""

    value: bytes
    """As `kept_answer` wrote it."""
    answer: Answer
    age_s: float
    left_s: float
    """What is left of its life; 0 where that ends right now."""


class SharedAnswers:
    """What is kept for all processes. A store that fails keeps nothing: that is counted, and never an error."""

    def __init__(self, store: SharedStore, *, jitter: Callable[[], float]) -> None:
        self.kind = store.kind
        self.failures = 0
        self.relay = Relay(store)
        """Where one hears what is being answered in another process."""
        self._store = store
        self._jitter = jitter

    async def find(self, key: CacheKey, generation: Generation) -> SharedAnswer | Literal["nothing"] | None:
        """What is kept under `key`; `nothing` where a run has just ended without an answer that may be kept."""
        try:
            value = await self._store.get(key.digest)
        except StoreUnavailable:
            self.failures += 1
            return None
        if value is None:
            return None
        if value == _NOTHING_KEPT:
            return "nothing"
        kept = kept_answer.read(value, key)
        if kept is None or kept.generation != generation:
            return None
        # The store has seen to it that it lives; how long is told by clocks that may be set, hence the bounds.
        age_s = min(max(0.0, time() - kept.stored_at), kept.life_s)
        return SharedAnswer(value, kept.answer, age_s, kept.life_s - age_s)

    async def put(self, digest: bytes, value: bytes, *, ttl_s: float) -> None:
        """Keep an answer for everybody, as `kept_answer` wrote it."""
        try:
            await self._store.put(digest, value, ttl_s=ttl_s)
        except StoreUnavailable:
            self.failures += 1

    async def wait_for_others(
        self, turn: "AskingTurn", key: CacheKey, generation: Generation, reception: Reception | None
    ) -> SharedAnswer | Reception | None:
        """While another process asks the model, wait for its answer, or for its first words where one listens.

        `None` means that it is this one's turn.
        """
        pause_s = 0.004
        while True:
            await asyncio.sleep(pause_s * (0.5 + self._jitter()))
            pause_s = min(0.05, pause_s * 1.5)
            found = await self.find(key, generation)
            if found == "nothing":
                return None
            if found is not None:
                return found
            if reception is not None and await reception.begins():
                return reception
            if await turn.take():
                # It may have been given back with an answer since one looked.
                found = await self.find(key, generation)
                return None if found == "nothing" else found

    def turn(self, digest: bytes) -> "AskingTurn":
        """The right to ask the model this question, to be taken."""
        return AskingTurn(self._store, digest)


class AskingTurn:
    """The right to ask the model one question, among the processes that share a store; renewed while it is held."""

    def __init__(self, store: SharedStore, digest: bytes) -> None:
        self._store = store
        self._digest = digest
        self._name = b"flight:" + digest
        self._owner = uuid4().hex
        self._renewing: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process has it, and the others know."""
        return self._renewing is not None

    async def take(self) -> bool:
        """Whether this process may ask; without a store everybody may."""
        try:
            if not await self._store.claim(self._name, self._owner, ttl_s=_LEASE_S):
                return False
        except StoreUnavailable:
            return True
        self._renewing = asyncio.create_task(self._renew(), name="cache-lease")
        return True

    async def give_back(self, *, kept: bool) -> None:
        """Let the next one ask; where nothing was `kept`, those who waited are told not to wait for each other."""
        if self._renewing is None:
            return
        self._renewing.cancel()
        try:
            if not kept:
                await self._store.put(self._digest, _NOTHING_KEPT, ttl_s=1.0)
            await self._store.release(self._name, self._owner)
        except StoreUnavailable:
            pass  # It ends by itself.

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_S / 3)
            try:
                await self._store.claim(self._name, self._owner, ttl_s=_LEASE_S)
            except StoreUnavailable:
                continue
