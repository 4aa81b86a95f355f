"""API keys: their form, what is kept of them, and the moments of their last use."""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from datetime import UTC, datetime

from app.db.api_keys import note_use
from app.db.async_session import Database
from app.errors import DatabaseUnavailable

_log = logging.getLogger(__name__)

PREFIX = "mn_"
"""What every key begins with; no access token does."""

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_CHARS = 12
_SECRET_BYTES = 32
_SECRET_CHARS = 43  # 62**43 > 2**256
_FORM = re.compile(rf"mn_([0-9A-Za-z]{{8,32}})_[0-9A-Za-z]{{{_SECRET_CHARS}}}")


def new_api_key() -> tuple[str, str]:
    """A fresh key that nobody can guess: its id, and the whole key `mn_<id>_<secret>`."""
    key_id = "".join(secrets.choice(_DIGITS) for _ in range(_ID_CHARS))
    number = int.from_bytes(secrets.token_bytes(_SECRET_BYTES))
    secret = ""
    for _ in range(_SECRET_CHARS):
        number, digit = divmod(number, 62)
        secret = _DIGITS[digit] + secret
    return key_id, f"{PREFIX}{key_id}_{secret}"


def shown_prefix(key_id: str) -> str:
    """The part of a key by which its owner tells it from others."""
    return f"{PREFIX}{key_id}"


def id_in(credential: str) -> str | None:
    """The id in what has the form of a key; `None` for anything else."""
    found = _FORM.fullmatch(credential)
    return None if found is None else found[1]


def digest_of(key: str) -> str:
    """What is kept of a key: its SHA-256. It has 256 random bits, so there is nothing to slow down for."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_key_of(credential: str, digest: str) -> bool:
    """Whether `credential` is the key that `digest` was made of, in a time that does not tell how much was right."""
    return hmac.compare_digest(digest_of(credential), digest)


class KeyUses:
    """When keys were last used, collected here and written every `interval_s` in one transaction.

    A prompt never waits for it; `kill -9` loses at most the last interval, SIGTERM none.
    """

    def __init__(self, database: Database, *, interval_s: float = 30.0) -> None:
        self._database = database
        self._interval_s = interval_s
        self._used: dict[str, datetime] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, key_id: str) -> None:
        """The key was used just now."""
        self._used[key_id] = datetime.now(UTC)

    def start(self) -> None:
        """Begin writing; `aclose()` ends it."""
        self._task = asyncio.create_task(self._write_for_ever(), name="key-uses")

    async def flush(self) -> None:
        """Write what has come together. While the database is away it waits for the next time."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            async with self._database.write() as session:
                await note_use(session, used)
        except DatabaseUnavailable:
            self._used = used | self._used

    async def aclose(self) -> None:
        """Stop, and write what has come together."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.flush()

    async def _write_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.flush()
            except Exception:
                # Telling when a key was used must not end with one failure.
                _log.exception("the last use of API keys could not be written")
