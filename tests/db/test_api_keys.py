"""API keys as the rest of the house sees them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from anyio import create_task_group

from app.db import api_keys
from app.db.api_keys import (
    ApiKeyRow,
    KeyOwner,
    add_api_key,
    delete_api_key,
    delete_api_keys_of,
    find_api_key,
    list_api_keys,
    note_use,
)
from app.db.async_session import Database
from app.db.users import UserRow, create_user, delete_user, disable_user
from app.errors import Conflict, NotFound

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def a_user(database: Database, name: str = "ada") -> UserRow:
    async with database.write() as session:
        await create_user(session, username=f"admin beside {name}", password_hash="hash", role="admin")
        return await create_user(session, username=name, password_hash="hash")


def a_key(user: UserRow, key_id: str = "key1", **fields: object) -> ApiKeyRow:
    return replace(ApiKeyRow(key_id, user.id, "laptop", "d" * 64, NOW), **fields)  # type: ignore[arg-type]


async def test_a_key_comes_back_as_it_was_stored_with_its_owner(database: Database) -> None:
    user = await a_user(database)
    plain = a_key(user)
    limited = a_key(
        user,
        "key2",
        expires_at=NOW + timedelta(days=1),
        agents=("haiku", "ticket"),
        requests_per_minute=5,
        tokens_per_minute=1000,
        chat_ui=True,
        created_at=NOW + timedelta(seconds=1),
    )
    none_at_all = a_key(user, "key3", agents=(), created_at=NOW + timedelta(seconds=2))
    async with database.write() as session:
        for key in (plain, limited, none_at_all):
            await add_api_key(session, key)
    async with database.read() as session:
        assert await list_api_keys(session, user_id=user.id) == [plain, limited, none_at_all]
        assert await find_api_key(session, "key2") == (limited, KeyOwner(user.id, "ada", "user", disabled=False))
        assert await find_api_key(session, "KEY2") is None
    async with database.write() as session:
        await disable_user(session, user.id)
        found = await find_api_key(session, "key1")
        assert found is not None
        assert found[1].disabled


async def test_only_the_owner_deletes_a_key(database: Database) -> None:
    ada, bob = await a_user(database), await a_user(database, "bob")
    async with database.write() as session:
        await add_api_key(session, a_key(ada))
    with pytest.raises(NotFound):
        async with database.write() as session:
            await delete_api_key(session, "key1", user_id=bob.id)
    async with database.write() as session:
        assert await list_api_keys(session, user_id=bob.id) == []
        await delete_api_key(session, "key1", user_id=ada.id)
        assert await find_api_key(session, "key1") is None


async def test_keys_go_with_their_user(database: Database) -> None:
    ada, bob = await a_user(database), await a_user(database, "bob")
    async with database.write() as session:
        await add_api_key(session, a_key(ada))
        await add_api_key(session, a_key(bob, "key2"))
        await add_api_key(session, a_key(bob, "key3"))
    async with database.write() as session:
        await delete_user(session, ada.id)
        assert await find_api_key(session, "key1") is None
        await delete_api_keys_of(session, bob.id)
        assert await list_api_keys(session, user_id=bob.id) == []


async def test_a_user_has_at_most_so_many_keys_also_when_they_are_made_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "MAX_KEYS_PER_USER", 3)
    user = await a_user(database)
    refused: list[Conflict] = []

    async def add(number: int) -> None:
        try:
            async with database.write() as session:
                await add_api_key(session, a_key(user, f"key{number}"))
        except Conflict as conflict:
            refused.append(conflict)

    async with create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(add, number)
    async with database.read() as session:
        assert len(await list_api_keys(session, user_id=user.id)) == 3
    assert len(refused) == 5


async def test_nobody_has_no_keys(database: Database) -> None:
    user = await a_user(database)
    with pytest.raises(NotFound):
        async with database.write() as session:
            await add_api_key(session, replace(a_key(user), user_id="nobody"))


async def test_the_last_use_only_moves_forward(database: Database) -> None:
    user = await a_user(database)
    later = NOW + timedelta(minutes=5)
    async with database.write() as session:
        await add_api_key(session, a_key(user, "key1"))
        await add_api_key(session, a_key(user, "key2"))
    for used in ({"key1": later, "gone": NOW}, {"key1": NOW, "key2": NOW}):
        async with database.write() as session:
            await note_use(session, used)
    async with database.read() as session:
        keys = await list_api_keys(session, user_id=user.id)
    assert {key.id: key.last_used_at for key in keys} == {"key1": later, "key2": NOW}
