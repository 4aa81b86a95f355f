"""From credentials to a caller: the only place that decides who is asking."""

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from time import monotonic

from app.core.run import Caller
from app.core.security import PasswordHasher, TokenSigner
from app.db.async_session import Database
from app.db.users import bump_token_version, find_user, get_user, set_password
from app.errors import NotAuthenticated

_REFUSED = "the credentials are missing, wrong or no longer valid"


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A fresh token and how long it is good for, in seconds."""

    token: str
    expires_in_s: int


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    good_until: float


class Callers:
    """Signs callers in and recognises them again.

    A verified credential is remembered for `memory_s` by the SHA-256 of the whole of it (a prefix is not enough:
    LiteLLM's CVE-2026-35030 came from `token[:20]`), so that recognising it costs a dictionary look-up.
    """

    def __init__(
        self,
        database: Database,
        passwords: PasswordHasher,
        tokens: TokenSigner,
        *,
        memory_s: float = 1.0,
        max_remembered: int = 10_000,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._tokens = tokens
        self._memory_s = memory_s
        self._max_remembered = max_remembered
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    async def sign_in(self, username: str, password: str) -> AccessToken:
        """A token for a right password. Raises `NotAuthenticated`, alike for an unknown name and a wrong password."""
        async with self._database.read() as session:
            user = await find_user(session, username)
        # An unknown name is verified against a dummy, so that time does not tell which names exist.
        right = await self._passwords.verify(user.password_hash if user else None, password)
        if user is None or not right or user.disabled:
            raise NotAuthenticated("the username or the password is wrong")
        token, expires_in_s = self._tokens.issue(user.id, user.token_version)
        return AccessToken(token, expires_in_s)

    async def recognise(self, credential: str) -> Caller:
        """Whom this bearer credential belongs to.

        Raises `NotAuthenticated`, or `DatabaseUnavailable` while nobody can be looked up: never a 401 for an outage.
        """
        digest = sha256(credential.encode("utf-8", "surrogateescape")).digest()
        known = self._known.get(digest)
        now = monotonic()
        if known is not None and now < known.good_until:
            return known.caller
        caller = await self._verify(credential)
        self._known[digest] = _Known(caller, now + self._memory_s)
        self._known.move_to_end(digest)
        while len(self._known) > self._max_remembered:
            self._known.popitem(last=False)
        return caller

    async def sign_out_everywhere(self, caller: Caller) -> None:
        """End every token of the caller, this one included."""
        async with self._database.write() as session:
            await bump_token_version(session, caller.id)
        self.forget(caller.id)

    async def change_password(self, caller: Caller, *, old: str, new: str) -> None:
        """Replace the password and end every token. Raises `NotAuthenticated` where `old` is wrong."""
        async with self._database.read() as session:
            user = await get_user(session, caller.id)
        if not await self._passwords.verify(user.password_hash if user else None, old):
            raise NotAuthenticated("the old password is wrong")
        hashed = await self._passwords.hash(new)
        async with self._database.write() as session:
            await set_password(session, caller.id, hashed)
        self.forget(caller.id)

    def forget(self, user_id: str) -> None:
        """Verify this user's credentials anew from the next request on."""
        for digest in [digest for digest, known in self._known.items() if known.caller.id == user_id]:
            del self._known[digest]

    async def _verify(self, credential: str) -> Caller:
        claims = self._tokens.read(credential)
        async with self._database.read() as session:
            user = await get_user(session, claims.user_id)
        if user is None or user.disabled or user.token_version != claims.token_version:
            raise NotAuthenticated(_REFUSED)
        return Caller(id=user.id, username=user.username, role=user.role)
