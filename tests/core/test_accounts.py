"""Deleting a user who has said much: in batches, and to the end also when one of them fails."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import accounts as accounts_module
from app.core.accounts import Accounts, KeyWishes
from app.core.callers import Callers
from app.core.conversations import Conversations
from app.core.login_limits import LoginLimits
from app.core.run import Caller
from app.core.security import PasswordHasher, TokenSigner
from app.db.async_session import Database, open_database
from app.db.conversations import delete_conversations_of
from app.db.models import conversation_entries as entries
from app.db.models import conversations
from app.errors import DatabaseUnavailable, NotAuthenticated, NotFound


class Office:
    """Accounts that delete ten rows at a time, and how often the processes were told to forget."""

    def __init__(self, database: Database, passwords: PasswordHasher) -> None:
        self.told = 0
        self.database = database
        signer = TokenSigner(b"k" * 32, lifetime_s=600)
        self.callers = Callers(
            database,
            passwords,
            signer,
            LoginLimits(),
            generation=lambda: self.told,
            bump=self._bump,
            on_key_used=lambda _: None,
            memory_s=60,
        )
        self.accounts = Accounts(database, passwords, self.callers, rows_at_once=10)
        self.conversations = Conversations(database)

    async def _bump(self) -> None:
        self.told += 1

    async def caller(self, name: str) -> Caller:
        user = await self.accounts.create_user(username=name, password="a long password", role="user")
        return Caller(user.id, name, "user")

    async def talk(self, caller: Caller, *messages: int) -> str:
        """A conversation with so many messages, told in turns."""
        talk = (await self.conversations.create(caller)).id
        await self.go_on(caller, talk, *messages)
        return talk

    async def go_on(self, caller: Caller, talk: str, *messages: int) -> None:
        for number in messages:
            async with self.conversations.turn(caller, talk) as turn:
                await turn.append(['{"kind":"request"}'] * number)

    async def kept(self, caller: Caller) -> tuple[int, int]:
        """How many conversations and messages of the caller are stored."""
        async with self.database.read() as session:
            counts = [
                (await session.execute(select(func.count()).where(table.c.owner == caller.id))).scalar_one()
                for table in (conversations, entries)
            ]
        return counts[0], counts[1]


@pytest.fixture
async def office(migrated_url: str) -> AsyncIterator[Office]:
    passwords = PasswordHasher(threads=1, memory_kib=8, passes=1)
    async with open_database(migrated_url, pool_size=5, max_overflow=0) as database:
        opened = Office(database, passwords)
        yield opened
        await opened.callers.aclose()
    await passwords.aclose()


async def a_talkative_user(office: Office) -> Caller:
    """Seven conversations with 35 messages: short ones, an empty one, a long one, and one with a fork."""
    caller = await office.caller("ada")
    for messages in ((3,), (4,), (), (4, 4), (10, 5), (1,)):
        await office.talk(caller, *messages)
    forked = await office.talk(caller, 2)
    fork = await office.conversations.fork(caller, forked)
    await office.go_on(caller, fork.id, 2)
    return caller


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
async def test_what_is_cut_between_batches_is_finished_by_a_second_call(
    office: Office, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    ada, ben = await a_talkative_user(office), await office.caller("ben")
    bens = await office.talk(ben, 3)
    key = (await office.accounts.create_key(ada.id, KeyWishes("laptop")))[1]
    assert (await office.callers.recognise(key)).id == ada.id
    begun = 0

    async def cut(session: AsyncSession, owner: str, *, max_rows: int) -> int:
        nonlocal begun
        begun += 1
        gone = await delete_conversations_of(session, owner, max_rows=max_rows)
        if begun == batch:
            raise DatabaseUnavailable("gone in the middle of a batch")
        return gone

    with monkeypatch.context() as patched:
        patched.setattr(accounts_module, "delete_conversations_of", cut)
        with pytest.raises(DatabaseUnavailable):
            await office.accounts.delete_user(ada.id)

    with pytest.raises(NotAuthenticated):
        await office.callers.recognise(key)
    assert (await office.accounts.user(ada.id)).disabled
    assert await office.accounts.keys(ada.id) == []
    assert await office.kept(ada) == [(8, 35), (0, 35), (0, 25), (0, 15)][batch - 1], "the batches before it are done"

    await office.accounts.delete_user(ada.id)
    with pytest.raises(NotFound):
        await office.accounts.user(ada.id)
    assert await office.kept(ada) == (0, 0)
    assert await office.kept(ben) == (1, 3)
    assert len((await office.conversations.show(ben, bens))[1]) == 3


async def test_a_tree_of_many_messages_is_deleted_in_batches(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await office.caller("ada")
    first = await office.talk(ada, 40)
    for _ in range(15):
        fork = await office.conversations.fork(ada, first)
        await office.go_on(ada, fork.id, 1)
    assert await office.kept(ada) == (16, 55)
    batches: list[int] = []

    async def noted(session: AsyncSession, owner: str, *, max_rows: int) -> int:
        batches.append(await delete_conversations_of(session, owner, max_rows=max_rows))
        return batches[-1]

    monkeypatch.setattr(accounts_module, "delete_conversations_of", noted)
    await office.accounts.delete_user(ada.id)
    assert batches == [10, 6, 10, 10, 10, 10, 10, 5, 0, 0]
    assert await office.kept(ada) == (0, 0)


async def test_an_answer_that_comes_between_the_batches_is_deleted_as_well(office: Office) -> None:
    """Its conversation is there when it is stored, and it is not when the next batch begins."""
    ada = await office.caller("ada")
    talk = await office.talk(ada, 3)
    async with office.conversations.turn(ada, talk) as turn:
        async with office.database.write() as session:
            assert await delete_conversations_of(session, ada.id, max_rows=10) == 1
        with pytest.raises(NotFound):
            await turn.append(['{"kind":"request"}'])
    await office.accounts.delete_user(ada.id)
    assert await office.kept(ada) == (0, 0)
