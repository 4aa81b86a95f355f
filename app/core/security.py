"""Passwords, access tokens and the key that signs them; nothing here knows HTTP or the database."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import stat
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import argon2
import jwt
from argon2.exceptions import InvalidHashError, VerificationError

from app.errors import BadConfiguration, FieldFault, InvalidFields, NotAuthenticated, Overloaded

T = TypeVar("T")

MAX_PASSWORD_BYTES = 1024
MIN_KEY_BYTES = 32

# One constant, never a setting: an algorithm that the token may choose is how forged tokens pass elsewhere.
_ALGORITHM = "HS256"
_ISSUER = "mnemosine"
_AUDIENCE = "mnemosine-api"
_LEEWAY_S = 10
_REQUIRED_CLAIMS = ("exp", "iat", "nbf", "sub", "aud", "iss", "jti", "ver")
_MAX_TOKEN_CHARS = 4096
_REFUSAL = "The access token is not valid, or no longer; get a new one from POST /api/v1/auth/token."
_KEY_FILE = "secret.key"


class PasswordHasher:
    """Argon2id off the event loop, in `threads` threads, with at most `max_waiting` hashes waiting for one.

    Each hash takes 19 MiB and tens of milliseconds of a core, so a flood of logins queues up and is then turned
    away rather than filling the memory. A permit belongs to the work, not to the caller: a caller who leaves makes
    no room before the thread is done. The defaults are OWASP's: m=19 MiB, t=2, p=1.
    """

    def __init__(
        self, *, threads: int | None = None, max_waiting: int = 32, memory_kib: int = 19_456, passes: int = 2
    ) -> None:
        """Make the hasher; `threads` unset means one per CPU core. Threads start with the first hash."""
        threads = threads or os.cpu_count() or 1
        self._limit = threads + max_waiting
        self._admitted = 0
        self._admission = threading.Lock()
        self._argon2 = argon2.PasswordHasher(
            time_cost=passes, memory_cost=memory_kib, parallelism=1, type=argon2.Type.ID
        )
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._dummy_hash: str | None = None

    async def hash(self, password: str) -> str:
        """The argon2id hash of `password`, with its salt and parameters.

        Raises `InvalidFields` where it has more than 1,024 bytes, and `Overloaded` when too many are waiting.
        """
        encoded = _encoded(password)
        if encoded is None:
            fault = FieldFault("password", f"must be text of at most {MAX_PASSWORD_BYTES:,} bytes in UTF-8")
            raise InvalidFields("The password cannot be used.", errors=[fault])
        return await self._run(lambda: self._argon2.hash(encoded))

    async def verify(self, hashed: str | None, password: str) -> bool:
        """Whether `password` belongs to `hashed`.

        With None (no such user) it does the same work against a hash of today's parameters and says no, so that the
        time it takes tells nothing. Raises `Overloaded` when too many are waiting.
        """
        encoded = _encoded(password)
        if hashed is None or encoded is None:
            await self._run(lambda: self._matches(None, encoded or b""))
            return False
        return await self._run(lambda: self._matches(hashed, encoded))

    def needs_rehash(self, hashed: str) -> bool:
        """Whether `hashed` was made with other parameters than today's."""
        try:
            return self._argon2.check_needs_rehash(hashed)
        except InvalidHashError:
            return True

    async def aclose(self) -> None:
        """Let the running hashes finish, cancel the waiting ones, and end the threads."""
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)

    def _matches(self, hashed: str | None, password: bytes) -> bool:
        if hashed is None:
            # Several threads may make it at first; any of them is good.
            hashed = self._dummy_hash = self._dummy_hash or self._argon2.hash(secrets.token_bytes(16))
        try:
            return self._argon2.verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        with self._admission:
            if self._admitted >= self._limit:
                raise Overloaded("Too many logins at once; try again in a moment.", retry_after_s=1.0)
            self._admitted += 1
        try:
            future = self._executor.submit(work)
        except RuntimeError:
            self._release(None)
            raise
        # Also called where the work is cancelled before a thread took it.
        future.add_done_callback(self._release)
        return await asyncio.wrap_future(future)

    def _release(self, _: Future[Any] | None) -> None:
        with self._admission:
            self._admitted -= 1


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a valid access token says; whether `token_version` is still the user's is for the caller to check."""

    user_id: str
    token_version: int
    token_id: str
    expires_at: float
    """Unix time, in seconds."""


class TokenSigner:
    """Issues and reads access tokens (JWT, HS256 only).

    Signs with `key` and also accepts `previous_key`, so that a key can be replaced without logging everybody out;
    the header's `kid` says which one. Raises `BadConfiguration` for a key of less than 32 bytes.
    """

    def __init__(self, key: bytes, *, lifetime_s: int, previous_key: bytes | None = None) -> None:
        """Sign with `key`; each token lives `lifetime_s` seconds."""
        self._lifetime_s = lifetime_s
        self._kid = _key_id(key)
        self._keys = {self._kid: key}
        if previous_key is not None:
            self._keys[_key_id(previous_key)] = previous_key
        for candidate in self._keys.values():
            if len(candidate) < MIN_KEY_BYTES:
                raise BadConfiguration(
                    f"SECRET_KEY must have at least {MIN_KEY_BYTES} bytes, has {len(candidate)}; "
                    "example: the output of `openssl rand -base64 48`"
                )

    def issue(self, user_id: str, token_version: int) -> tuple[str, int]:
        """A new token for `user_id`, and the seconds it lives."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": _ISSUER,
            "aud": _AUDIENCE,
            "sub": user_id,
            "iat": now,
            "nbf": now,
            "exp": now + self._lifetime_s,
            "jti": uuid.uuid4().hex,
            "ver": token_version,
        }
        # pyright cannot know PyJWT's key types: they name classes of `cryptography`, which is not installed.
        token = jwt.encode(  # pyright: ignore[reportUnknownMemberType]
            claims, self._keys[self._kid], algorithm=_ALGORITHM, headers={"kid": self._kid}
        )
        return token, self._lifetime_s

    def read(self, token: str) -> TokenClaims:
        """The claims of `token`, all of them checked.

        Raises `NotAuthenticated` with the same message whatever is wrong.
        """
        if len(token) > _MAX_TOKEN_CHARS:
            raise NotAuthenticated(_REFUSAL)
        try:
            key = self._keys[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(  # pyright: ignore[reportUnknownMemberType]
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                issuer=_ISSUER,
                leeway=_LEEWAY_S,
                options={"require": list(_REQUIRED_CLAIMS), "strict_aud": True},
            )
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise NotAuthenticated(_REFUSAL) from error
        version = claims["ver"]
        if not isinstance(version, int) or isinstance(version, bool) or not claims["sub"]:
            raise NotAuthenticated(_REFUSAL)
        return TokenClaims(
            user_id=claims["sub"], token_version=version, token_id=claims["jti"], expires_at=float(claims["exp"])
        )


def open_data_dir(path: Path) -> Path:
    """`path` as an absolute folder that exists (made with mode 0700) and that only its owner can write to.

    Raises `BadConfiguration` with the cure. A folder that others may read passes: what is secret in it is 0600.
    """
    folder = path.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(folder.stat().st_mode)
    except FileExistsError as error:
        raise BadConfiguration(f"DATA_DIR {folder} is not a folder; example: DATA_DIR=./data") from error
    except OSError as error:
        raise BadConfiguration(
            f"DATA_DIR {folder} cannot be created: {error.strerror}; example: DATA_DIR=./data"
        ) from error
    if mode & 0o022:
        raise BadConfiguration(
            f"DATA_DIR {folder} can be written to by others (mode {mode:04o}), who could replace the signing key; "
            f"use a folder of its own, or run: chmod 700 {folder}"
        )
    probe = folder / f".writable-{uuid.uuid4().hex}"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        probe.unlink()
    except OSError as error:
        raise BadConfiguration(
            f"DATA_DIR {folder} cannot be written to: {error.strerror}; example: DATA_DIR=./data"
        ) from error
    return folder


def signing_key(data_dir: Path) -> bytes:
    """The 32 random bytes in `data_dir`/secret.key, made at the first call with mode 0600.

    Of several processes that start at once, all get the key that one of them made: it is written elsewhere in full
    and then linked to its name, so nobody reads half a key. Raises `BadConfiguration` for a key that others can
    read, or that is too short.
    """
    path = open_data_dir(data_dir) / _KEY_FILE
    try:
        if not path.exists():
            _create_key(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read(1024)
    except OSError as error:
        raise BadConfiguration(f"the signing key {path} cannot be opened: {error.strerror}") from error
    if mode & 0o077:
        raise BadConfiguration(
            f"the signing key {path} is open to others (mode {mode:04o}); run: chmod 600 {path}, "
            "or delete it if it may have been read: all tokens then end"
        )
    if len(key) < MIN_KEY_BYTES:
        raise BadConfiguration(
            f"the signing key {path} has {len(key)} bytes instead of {MIN_KEY_BYTES}; delete it: all tokens then end"
        )
    return key


def generate_password() -> str:
    """A password of 24 characters that nobody can guess (144 bits)."""
    return secrets.token_urlsafe(18)


def _create_key(path: Path) -> None:
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(MIN_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _encoded(password: str) -> bytes | None:
    """The bytes of `password`, or None where it is too long or not text (a lone surrogate)."""
    try:
        encoded = password.encode()
    except UnicodeEncodeError:
        return None
    return encoded if len(encoded) <= MAX_PASSWORD_BYTES else None


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"mnemosine key id:" + key).hexdigest()[:16]
