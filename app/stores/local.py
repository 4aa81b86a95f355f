"""The shared store of one machine: all workers that have the same data directory."""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from app.stores.board import Board
from app.stores.meters import judge
from app.stores.protocol import Counter, StoreNumbers, Verdict
from app.stores.shelf import Shelf
from app.stores.slots import Slots

_METERS = 131_072
_LEASES = 16_384
_DEADLINE_S = 0.25
_NOBODY = bytes(8)


@dataclass(slots=True)
class _Taking:
    """What is to be taken from a meter, and what the meter said."""

    cost: int
    limit: int
    window_s: float
    force: bool = False
    verdict: Verdict | None = None

    def decide(self, used_s: float, _: bytes) -> tuple[float, bytes] | None:
        verdict = self.verdict = judge(
            used_s, cost=self.cost, limit=self.limit, window_s=self.window_s, force=self.force
        )
        return (verdict.reset_s, _NOBODY) if verdict.allowed else None


class LocalStore:
    """`SharedStore` in the files of a folder, which must be on a local disk: shared memory and SQLite.

    Meters, leases and generations are in mapped files: they cost microseconds, do not suspend, and end with the boot.
    Entries, posts and logs are in SQLite and survive a restart. A process that is killed holds nobody up.
    """

    kind: Literal["local"] = "local"

    def __init__(self, folder: Path, *, max_bytes: int = 64 * 1024 * 1024) -> None:
        """Open the files in `folder`, made with mode 0700 where it is missing. Raises `OSError`."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._board = Board(folder / "board")
        try:
            self._meters = Slots(folder / "meters", capacity=_METERS)
            self._leases = Slots(folder / "leases", capacity=_LEASES)
        except BaseException:
            self._board.close()
            raise
        # A board for each thread: a lock on a file belongs to whoever opened it.
        self._shelf = Shelf(folder, Board(folder / "board"), max_bytes=max_bytes)
        self.get = self._shelf.get
        self.put = self._shelf.put
        self.delete = self._shelf.delete
        self.post = self._shelf.post
        self.posts = self._shelf.posts
        self.append = self._shelf.append
        self.read_on = self._shelf.read_on
        self.ping = self._shelf.ping
        self.generation = self._board.generation

    async def claim(self, key: bytes, owner: str, *, ttl_s: float) -> bool:
        """See `SharedStore.claim`."""
        us, taken = _mark(owner), False

        def decide(left_s: float, holder: bytes) -> tuple[float, bytes] | None:
            nonlocal taken
            taken = left_s <= 0 or holder == us
            return (ttl_s, us) if taken else None

        await self._leases.change(key, decide, deadline_s=_DEADLINE_S)
        return taken

    async def release(self, key: bytes, owner: str) -> None:
        """See `SharedStore.release`."""
        us = _mark(owner)
        await self._leases.change(
            key, lambda left_s, holder: (0.0, us) if left_s > 0 and holder == us else None, deadline_s=_DEADLINE_S
        )

    async def take(self, key: bytes, *, cost: int = 1, limit: int, window_s: float, force: bool = False) -> Verdict:
        """See `SharedStore.take`."""
        taking = _Taking(cost, limit, window_s, force)
        await self._meters.change(key, taking.decide, deadline_s=_DEADLINE_S)
        assert taking.verdict is not None
        return taking.verdict

    def take_at_once(self, key: bytes, *, cost: int, limit: int, window_s: float) -> Verdict | None:
        """See `SharedStore.take_at_once`."""
        taking = _Taking(cost, limit, window_s)
        return taking.verdict if self._meters.change_at_once(key, taking.decide) else None

    async def bump(self, counter: Counter) -> int:
        """See `SharedStore.bump`; every process of this machine sees it at once."""
        return self._board.bump(counter)

    def numbers(self) -> StoreNumbers:
        """See `SharedStore.numbers`; what costs microseconds is not counted."""
        return StoreNumbers("down" if self._shelf.is_away else "up", self._shelf.calls, self._shelf.failures, 0)

    async def aclose(self) -> None:
        """See `SharedStore.aclose`."""
        await self._shelf.aclose()
        self._meters.close()
        self._leases.close()
        self._board.close()


def _mark(owner: str) -> bytes:
    return blake2b(owner.encode(), digest_size=8).digest()
