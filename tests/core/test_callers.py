"""Recognising callers: what is remembered, for how long, and what it costs the database."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from anyio import to_thread

from app.core.accounts import Accounts, KeyWishes
from app.core.callers import Callers, digest_of
from app.core.login_limits import LoginLimits
from app.core.run import Caller
from app.core.security import PasswordHasher, TokenSigner
from app.db.async_session import Database, open_database
from app.errors import DatabaseUnavailable, NotAuthenticated, StoreUnavailable
from tests.prepared import migrate


@dataclass
class Office:
    """Two processes on one database, which may or may not hear of each other's bumps."""

    database: Database
    here: Callers
    there: Callers
    accounts: Accounts
    generation: list[int | None]
    store_is_away: list[bool]
    looked_up: list[str] = field(default_factory=list[str])

    async def user(self, name: str = "ada") -> str:
        user = await self.accounts.create_user(username=name, password="a long password", role="user")
        return user.id

    async def key(self, user_id: str) -> str:
        return (await self.accounts.create_key(user_id, KeyWishes("laptop")))[1]


@pytest.fixture
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    path = tmp_path_factory.mktemp("office") / "mnemosine.db"
    await to_thread.run_sync(migrate, path)
    passwords = PasswordHasher(threads=1, memory_kib=8, passes=1)
    generation: list[int | None] = [0]
    away = [False]

    async def bump() -> None:
        if away[0]:
            raise StoreUnavailable("the store is away")
        generation[0] = (generation[0] or 0) + 1

    async with open_database(f"sqlite+aiosqlite:///{path}") as database:
        looked_up: list[str] = []

        def callers() -> Callers:
            return Callers(
                database,
                passwords,
                TokenSigner(b"k" * 32, lifetime_s=600),
                LoginLimits(),
                generation=lambda: generation[0],
                bump=bump,
                on_key_used=looked_up.append,
                memory_s=0.3,
            )

        here, there = callers(), callers()
        yield Office(database, here, there, Accounts(database, passwords, here), generation, away, looked_up)
        await here.aclose()
        await there.aclose()
    await passwords.aclose()


async def test_a_credential_is_looked_up_once_and_then_remembered(office: Office) -> None:
    key = await office.key(await office.user())
    assert office.here.remembered(digest_of(key)) is None
    callers = [await office.here.recognise(key) for _ in range(50)]
    assert len(set(callers)) == 1
    assert office.here.remembered(digest_of(key)) == callers[0]
    assert len(office.looked_up) == 1


async def test_a_hundred_at_once_cost_one_look_up_also_after_a_bump(office: Office) -> None:
    key = await office.key(await office.user())
    for expected in (1, 2, 3):
        await asyncio.gather(*(office.here.recognise(key) for _ in range(100)))
        assert len(office.looked_up) == expected
        await office.here.forget_everywhere()


async def test_what_is_only_alike_is_not_mistaken(office: Office) -> None:
    ada, bob = await office.key(await office.user("ada")), await office.key(await office.user("bob"))
    names = await asyncio.gather(*(office.here.recognise(key) for key in (ada, bob) * 20))
    assert [caller.username for caller in names] == ["ada", "bob"] * 20
    # The same beginning, as all tokens of one algorithm have, is nobody.
    with pytest.raises(NotAuthenticated):
        await office.here.recognise(ada[:20])


async def test_what_ended_here_is_refused_there_at_once(office: Office) -> None:
    user_id = await office.user()
    key = await office.key(user_id)
    token = (await office.here.sign_in("ada", "a long password", peer="1.2.3.4")).token
    for credential in (key, token):
        assert (await office.there.recognise(credential)).id == user_id
    await office.accounts.delete_user(user_id)
    for credential in (key, token):
        with pytest.raises(NotAuthenticated):
            await office.there.recognise(credential)


async def test_a_look_up_that_began_before_the_end_is_not_kept(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    user_id = await office.user()
    key = await office.key(user_id)
    began, go_on = asyncio.Event(), asyncio.Event()
    verify = office.there._verify  # pyright: ignore[reportPrivateUsage]

    async def slowly(credential: str, claimed: str) -> tuple[Caller, float]:
        found = await verify(credential, claimed)
        began.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(office.there, "_verify", slowly)
    early = asyncio.create_task(office.there.recognise(key))
    await began.wait()
    await office.accounts.delete_user(user_id)
    # Whoever comes now must not join the look-up that saw the user alive.
    monkeypatch.setattr(office.there, "_verify", verify)
    with pytest.raises(NotAuthenticated):
        await office.there.recognise(key)
    go_on.set()
    assert (await early).id == user_id
    with pytest.raises(NotAuthenticated):
        await office.there.recognise(key)


async def test_while_the_store_is_away_nothing_remembered_is_trusted(office: Office) -> None:
    user_id = await office.user()
    key = await office.key(user_id)
    assert (await office.there.recognise(key)).id == user_id
    office.generation[0] = None
    before = len(office.looked_up)
    for _ in range(3):
        await office.there.recognise(key)
    assert len(office.looked_up) == before + 3
    assert office.there.remembered(digest_of(key)) is None


async def test_an_end_that_cannot_be_told_is_acknowledged_when_everybody_has_forgotten(office: Office) -> None:
    user_id = await office.user()
    key = await office.key(user_id)
    await office.there.recognise(key)
    office.store_is_away[0] = True
    await office.accounts.delete_user(user_id)
    with pytest.raises(NotAuthenticated):
        await office.there.recognise(key)


async def test_whoever_leaves_harms_nobody(office: Office) -> None:
    key = await office.key(await office.user())
    tasks = [asyncio.create_task(office.here.recognise(key)) for _ in range(10)]
    await asyncio.sleep(0)
    for task in tasks[:5]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in done] == [True] * 5 + [False] * 5
    assert len(office.looked_up) == 1


async def test_an_outage_is_told_and_not_remembered(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await office.key(await office.user())
    verify = office.here._verify  # pyright: ignore[reportPrivateUsage]

    async def away(credential: str, claimed: str) -> tuple[Caller, float]:
        raise DatabaseUnavailable("the database does not answer")

    monkeypatch.setattr(office.here, "_verify", away)
    replies = await asyncio.gather(*(office.here.recognise(key) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(reply, DatabaseUnavailable) for reply in replies)
    monkeypatch.setattr(office.here, "_verify", verify)
    assert (await office.here.recognise(key)).username == "ada"


async def test_the_memory_is_bounded(office: Office) -> None:
    small = Callers(
        office.database,
        PasswordHasher(threads=1),
        TokenSigner(b"k" * 32, lifetime_s=600),
        LoginLimits(),
        generation=lambda: 1,
        bump=asyncio.Event().wait,
        max_remembered=2,
    )
    user_id = await office.user()
    keys = [await office.key(user_id) for _ in range(4)]
    for key in keys:
        await small.recognise(key)
    assert [small.remembered(digest_of(key)) is not None for key in keys] == [False, False, True, True]
