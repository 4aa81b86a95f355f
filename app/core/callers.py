"""From credentials to a caller: the only place that decides who is asking."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from time import monotonic

from app.core.api_keys import PREFIX, id_in, is_key_of
from app.core.login_limits import LoginLimits
from app.core.run import Caller
from app.core.security import PasswordHasher, TokenClaims, TokenSigner
from app.db.api_keys import find_api_key
from app.db.async_session import Database
from app.db.budgets import has_budget
from app.db.users import UserRow, find_user, get_user, username_key
from app.errors import NotAuthenticated, StoreUnavailable

_REFUSED = "the credentials are missing, wrong or no longer valid"
_MAX_USERNAME_CHARS = 255


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A fresh token and how long it is good for, in seconds."""

    token: str
    expires_in_s: int


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    generation: int
    good_until: float


@dataclass(frozen=True, slots=True)
class _Flight:
    """A verification that is under way; whoever brings the same credential meanwhile waits for it."""

    generation: int
    task: asyncio.Task[Caller]


class Callers:
    """Signs callers in and recognises them again.

    A verified credential is remembered by the SHA-256 of the whole of it (a prefix is not enough: LiteLLM's
    CVE-2026-35030 came from `token[:20]`), so that recognising it costs a dictionary look-up. It is forgotten after
    `memory_s`, and as soon as `generation()` is another one: whoever ends a credential bumps that after the commit.
    While `generation()` is `None` nobody knows, and every credential is looked up anew.
    """

    def __init__(
        self,
        database: Database,
        passwords: PasswordHasher,
        tokens: TokenSigner,
        limits: LoginLimits,
        *,
        generation: Callable[[], int | None],
        bump: Callable[[], Awaitable[object]],
        on_key_used: Callable[[str], None] | None = None,
        memory_s: float = 1.0,
        max_remembered: int = 10_000,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._tokens = tokens
        self._limits = limits
        self._generation = generation
        self._bump = bump
        self._on_key_used = on_key_used
        self._memory_s = memory_s
        self._max_remembered = max_remembered
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}
        self._tasks: set[asyncio.Task[Caller]] = set()

    async def sign_in(self, username: str, password: str, *, peer: str) -> AccessToken:
        """A token for a right password; raises what `check_password` raises."""
        user = await self.check_password(username, password, peer=peer)
        token, expires_in_s = self._tokens.issue(user.id, user.token_version)
        return AccessToken(token, expires_in_s)

    async def check_password(self, username: str, password: str, *, peer: str) -> UserRow:
        """The user whose password this is; `peer` is the address that it came from.

        Raises `NotAuthenticated`, alike for an unknown name and a wrong password, and `LimitExceeded` after too many
        wrong ones, then also for the right one.
        """
        account = username_key(username[:_MAX_USERNAME_CHARS])
        await self._limits.count(account, peer)
        async with self._database.read() as session:
            # PostgreSQL does not take NUL even in a question.
            may_exist = len(username) <= _MAX_USERNAME_CHARS and "\x00" not in username
            user = await find_user(session, username) if may_exist else None
        # An unknown name is verified against a dummy, so that time does not tell which names exist.
        right = await self._passwords.verify(user.password_hash if user else None, password)
        if user is None or not right or user.disabled:
            raise NotAuthenticated("the username or the password is wrong")
        await self._limits.give_back(account, peer)
        return user

    def remembered(self, digest: bytes) -> Caller | None:
        """Whom the credential with this digest belongs to, without waiting; `None` where only `recognise` can tell."""
        return self._recall(digest, self._generation())

    async def recognise(self, credential: str) -> Caller:
        """Whom this bearer credential belongs to.

        Raises `NotAuthenticated`, or `DatabaseUnavailable` while nobody can be looked up: never a 401 for an outage.
        """
        digest = digest_of(credential)
        # Before the database is read: what ends a credential meanwhile makes this generation an old one.
        generation = self._generation()
        caller = self._recall(digest, generation)
        if caller is not None:
            return caller
        flight = self._flights.get(digest)
        if flight is None or flight.generation != generation:
            claimed = self._claimed(credential)
            if generation is None:
                return (await self._verify(credential, claimed))[0]
            # A bump makes everybody come back at once; each credential then costs one look-up, not one a request.
            task = asyncio.create_task(self._verify_and_keep(credential, claimed, digest, generation))
            flight = self._flights[digest] = _Flight(generation, task)
            self._tasks.add(task)
            task.add_done_callback(self._landed)
        return await asyncio.shield(flight.task)

    async def forget_everywhere(self) -> None:
        """Have every process look credentials up anew; when this returns, none trusts what it knew before."""
        self._known.clear()
        try:
            await self._bump()
        except StoreUnavailable:
            # Those that still reach the store have not heard of it; in this time they forget by themselves.
            await asyncio.sleep(self._memory_s)

    async def aclose(self) -> None:
        """Wait for the look-ups that are under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _recall(self, digest: bytes, generation: int | None) -> Caller | None:
        known = self._known.get(digest)
        if known is None or known.generation != generation or monotonic() >= known.good_until:
            return None
        return known.caller

    def _claimed(self, credential: str) -> TokenClaims | str:
        """Read what the credential says of itself: a token's claims, or a key's id; what is neither is refused."""
        if not credential.startswith(PREFIX):
            return self._tokens.read(credential)
        key_id = id_in(credential)
        if key_id is None:
            raise NotAuthenticated(_REFUSED)
        return key_id

    async def _verify_and_keep(
        self, credential: str, claimed: TokenClaims | str, digest: bytes, generation: int
    ) -> Caller:
        now = monotonic()
        try:
            caller, left_s = await self._verify(credential, claimed)
        finally:
            flight = self._flights.get(digest)
            if flight is not None and flight.generation == generation:
                del self._flights[digest]
        self._known[digest] = _Known(caller, generation, now + min(self._memory_s, left_s))
        self._known.move_to_end(digest)
        while len(self._known) > self._max_remembered:
            self._known.popitem(last=False)
        return caller

    async def _verify(self, credential: str, claimed: TokenClaims | str) -> tuple[Caller, float]:
        """Look the credential up; gives the caller, and the seconds that the credential has to live."""
        if isinstance(claimed, str):
            return await self._verify_key(credential, claimed)
        async with self._database.read() as session:
            user = await get_user(session, claimed.user_id)
            budget = await has_budget(session, (f"user:{claimed.user_id}",))
        if user is None or user.disabled or user.token_version != claimed.token_version:
            raise NotAuthenticated(_REFUSED)
        caller = Caller(id=user.id, username=user.username, role=user.role, has_budget=budget)
        return caller, claimed.expires_at - time.time()

    async def _verify_key(self, credential: str, key_id: str) -> tuple[Caller, float]:
        async with self._database.read() as session:
            found = await find_api_key(session, key_id)
            if found is None:
                raise NotAuthenticated(_REFUSED)
            key, owner = found
            budget = await has_budget(session, (f"user:{owner.id}", f"key:{key_id}"))
        left_s = float("inf") if key.expires_at is None else key.expires_at.timestamp() - time.time()
        if not is_key_of(credential, key.digest) or owner.disabled or left_s <= 0:
            raise NotAuthenticated(_REFUSED)
        if self._on_key_used is not None:
            self._on_key_used(key.id)
        caller = Caller(
            id=owner.id,
            username=owner.username,
            # A key for some agents is for asking them, whoever made it.
            role=owner.role if key.agents is None else "user",
            key_id=key.id,
            agents=None if key.agents is None else frozenset(key.agents),
            requests_per_minute=key.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute,
            has_budget=budget,
            chat_ui=key.chat_ui,
        )
        return caller, left_s

    def _landed(self, task: asyncio.Task[Caller]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # everybody who waited may have left


def digest_of(credential: str) -> bytes:
    """What a credential is remembered by: the SHA-256 of the whole of it."""
    return sha256(credential.encode("utf-8", "surrogateescape")).digest()
