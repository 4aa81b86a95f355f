"""Users as the rest of the house sees them."""

from dataclasses import replace

import pytest
from anyio import create_task_group

from app.db.async_session import Database
from app.db.users import (
    bump_token_version,
    create_first_admin,
    create_user,
    delete_user,
    disable_user,
    enable_user,
    find_user,
    get_user,
    list_users,
    set_password,
    update_user,
)
from app.errors import Conflict, InvalidFields, NotFound


async def test_a_user_is_found_by_id_and_by_name_in_any_case(database: Database) -> None:
    async with database.write() as session:
        ada = await create_user(session, username="Ada Straße", password_hash="hash")
    async with database.read() as session:
        assert await get_user(session, ada.id) == ada
        assert await find_user(session, "ADA STRASSE") == ada
        assert await find_user(session, "bob") is None
    assert (ada.role, ada.token_version, ada.disabled) == ("user", 1, False)
    assert ada.created_at.tzinfo is not None


async def test_a_name_is_given_once_in_whatever_case(database: Database) -> None:
    async with database.write() as session:
        await create_user(session, username="ada", password_hash="hash")
        bob = await create_user(session, username="bob", password_hash="hash")
    with pytest.raises(Conflict, match="'ADA' is taken"):
        async with database.write() as session:
            await create_user(session, username="ADA", password_hash="hash")
    with pytest.raises(Conflict, match="'Ada' is taken"):
        async with database.write() as session:
            await update_user(session, bob.id, username="Ada")


async def test_twenty_first_starts_at_once_make_one_admin(database: Database) -> None:
    created: list[bool] = []

    async def start() -> None:
        async with database.write() as session:
            created.append(await create_first_admin(session, username="admin", password_hash="hash"))

    async with create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(start)
    assert sorted(created) == [False] * 19 + [True]
    async with database.read() as session:
        assert len((await list_users(session)).rows) == 1


async def test_what_changes_who_a_user_is_ends_the_tokens(database: Database) -> None:
    async with database.write() as session:
        await create_first_admin(session, username="admin", password_hash="hash")
        user = await create_user(session, username="ada", password_hash="old")
        versions = [
            (await set_password(session, user.id, "new")).token_version,
            (await bump_token_version(session, user.id)).token_version,
            (await update_user(session, user.id, role="admin")).token_version,
            (await disable_user(session, user.id)).token_version,
        ]
        enabled = await enable_user(session, user.id)
        renamed = await update_user(session, user.id, username="Ada L.", role="admin")
    assert versions == [2, 3, 4, 5]
    assert not enabled.disabled
    assert renamed == replace(enabled, username="Ada L.", updated_at=renamed.updated_at)
    assert renamed.password_hash == "new"


async def test_the_last_active_admin_stays(database: Database) -> None:
    async with database.write() as session:
        await create_first_admin(session, username="admin", password_hash="hash")
        admin = await find_user(session, "admin")
        second = await create_user(session, username="second", password_hash="hash", role="admin")
        await disable_user(session, second.id)
        assert admin is not None
        for leave in (
            lambda: update_user(session, admin.id, role="user"),
            lambda: disable_user(session, admin.id),
            lambda: delete_user(session, admin.id),
        ):
            with pytest.raises(Conflict, match="last active administrator"):
                await leave()
        await enable_user(session, second.id)
        await delete_user(session, admin.id)
        assert await get_user(session, admin.id) is None


async def test_two_admins_who_remove_each_other_leave_one(database: Database) -> None:
    async with database.write() as session:
        both = [await create_user(session, username=name, password_hash="hash", role="admin") for name in "ab"]
    refused: list[Conflict] = []

    async def remove(user_id: str) -> None:
        try:
            async with database.write() as session:
                await delete_user(session, user_id)
        except Conflict as conflict:
            refused.append(conflict)

    async with create_task_group() as tasks:
        for user in both:
            tasks.start_soon(remove, user.id)
    assert len(refused) == 1


@pytest.mark.parametrize("change", [set_password, update_user, delete_user, disable_user, bump_token_version])
async def test_nobody_cannot_be_changed(database: Database, change: object) -> None:
    arguments = ("hash",) if change is set_password else ()
    with pytest.raises(NotFound):
        async with database.write() as session:
            await change(session, "nobody", *arguments)  # type: ignore[operator]


async def test_pages_show_every_user_once(database: Database) -> None:
    async with database.write() as session:
        made = [await create_user(session, username=f"user {n}", password_hash="hash") for n in range(7)]
    seen: list[str] = []
    cursor = None
    async with database.read() as session:
        while True:
            page = await list_users(session, limit=3, cursor=cursor)
            seen += [user.id for user in page.rows]
            cursor = page.next_cursor
            if cursor is None:
                break
    assert seen == [user.id for user in sorted(made, key=lambda user: (user.created_at, user.id))]


@pytest.mark.parametrize("cursor", ["", "x", "ö", "MjAyNg", "bm90IGEgdGltZXxpZA", "MjAyNi0wMS0wMXxpZA"])
async def test_an_invented_cursor_is_named_as_the_fault(database: Database, cursor: str) -> None:
    async with database.read() as session:
        with pytest.raises(InvalidFields) as refused:
            await list_users(session, cursor=cursor)
    assert refused.value.errors[0].field == "cursor"
