"""Deleting a user who has said much: in batches, and to the end also when one of them fails."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from anyio import to_thread
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import accounts as accounts_module
from app.core.accounts import Accounts, KeyWishes
from app.core.callers import Callers
from app.core.conversations import Conversations
from app.core.login_limits import LoginLimits
from app.core.run import Caller
from app.core.security import PasswordHasher, TokenSigner
from app.db import schema
from app.db.async_session import Database, open_database
from app.db.conversations import ConversationRow, bury_conversations, save_conversation
from app.db.models import conversation_entries as entries
from app.db.models import conversations
from app.errors import DatabaseUnavailable, NotAuthenticated, NotFound


class Office:
    """Accounts that bury ten rows at a time, and how often the processes were told to forget."""

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
        self.accounts = Accounts(database, passwords, self.callers, burial_rows=10)
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

    async def kept(self) -> dict[str, tuple[set[str], int]]:
        """By tree: who has its conversations and messages, and how many messages those are."""
        trees: dict[str, tuple[set[str], int]] = {}
        async with self.database.read() as session:
            for table in (conversations, entries):
                query = select(table.c.tree_id, table.c.owner, func.count()).group_by(table.c.tree_id, table.c.owner)
                for tree, owner, number in (await session.execute(query)).all():
                    owners, messages = trees.get(tree, (set[str](), 0))
                    trees[tree] = owners | {owner}, messages + (number if table is entries else 0)
        return trees


@pytest.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    await to_thread.run_sync(schema.upgrade, database_url)
    passwords = PasswordHasher(threads=1, memory_kib=8, passes=1)
    async with open_database(database_url, pool_size=5, max_overflow=0) as database:
        opened = Office(database, passwords)
        yield opened
        await opened.callers.aclose()
    await passwords.aclose()


async def a_talkative_user(office: Office) -> Caller:
    """Seven trees: short ones, an empty one, a forked one, and one that is larger than a batch."""
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

    async def cut(session: AsyncSession, owner: str, *, max_rows: int) -> bool:
        nonlocal begun
        begun += 1
        took = await bury_conversations(session, owner, max_rows=max_rows)
        if begun == batch:
            raise DatabaseUnavailable("gone in the middle of a batch")
        return took

    with monkeypatch.context() as patched:
        patched.setattr(accounts_module, "bury_conversations", cut)
        with pytest.raises(DatabaseUnavailable):
            await office.accounts.delete_user(ada.id)

    with pytest.raises(NotAuthenticated):
        await office.callers.recognise(key)
    assert (await office.accounts.user(ada.id)).disabled
    assert await office.accounts.keys(ada.id) == []
    trees = await office.kept()
    assert all(len(owners) == 1 for owners, _ in trees.values()), "no tree is cut in two"
    left = sum(owners == {ada.id} for owners, _ in trees.values())
    assert 0 < left <= 7
    assert (left < 7) == (batch > 1), "the control: batches before the cut are done"
    await office.conversations.sweep()
    assert sum(owners == {ada.id} for owners, _ in (await office.kept()).values()) == left
    assert len(await office.kept()) == left + 1, (
        "of what was buried nothing is left over, and of the others nothing gone"
    )

    await office.accounts.delete_user(ada.id)
    with pytest.raises(NotFound):
        await office.accounts.user(ada.id)
    await office.conversations.sweep()
    assert list((await office.kept()).values()) == [({ben.id}, 3)]
    assert len((await office.conversations.show(ben, bens))[1]) == 3


async def test_a_batch_is_whole_trees_and_not_more_than_it_may_be(office: Office) -> None:
    ada = await a_talkative_user(office)
    before = await office.kept()
    assert sum(messages for _, messages in before.values()) == 35
    sizes: list[int] = []
    taken = True
    while taken:
        async with office.database.write() as session:
            taken = await bury_conversations(session, ada.id, max_rows=10)
        after = await office.kept()
        moved = [messages for tree, (owners, messages) in after.items() if owners != before[tree][0]]
        assert len(moved) == 1 or sum(moved) < 10
        sizes.append(len(moved))
        before = after
    assert sum(sizes) == 7
    assert len(sizes) > 3


async def test_a_name_that_is_used_again_after_a_cut_is_buried_as_well(office: Office) -> None:
    ada = await office.caller("ada")
    moment = datetime.now(UTC)
    for revision in ("before", "after"):
        row = ConversationRow(ada.id, "chat", revision, created_at=moment, updated_at=moment)
        async with office.database.write() as session:
            assert await save_conversation(session, row, expected_revision=None)
            assert await bury_conversations(session, ada.id, max_rows=10)
    assert len(await office.kept()) == 2
    assert await office.conversations.sweep() == 2
