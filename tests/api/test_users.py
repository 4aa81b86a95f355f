"""Users, as administrators look after them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.core.run import Caller
from app.errors import NotFound
from tests.application import USER_PASSWORD, Application, open_application

USERS = "/api/v1/users"
ME = "/api/v1/auth/me"
TOKEN = "/api/v1/auth/token"


@pytest.fixture
async def application(tmp_path: Path, installed_url: str) -> AsyncIterator[Application]:
    async with open_application(tmp_path / "data", database_url=installed_url) as opened:
        yield opened


async def test_a_user_is_added_shown_changed_and_removed(application: Application) -> None:
    admin = application.client
    reply = await admin.post(USERS, json={"username": "Ada", "password": USER_PASSWORD})
    ada = reply.json()
    assert reply.status_code == 201
    assert ada.keys() == {"id", "username", "role", "disabled", "created_at", "updated_at"}
    assert (ada["username"], ada["role"], ada["disabled"]) == ("Ada", "user", False)
    path = f"{USERS}/{ada['id']}"
    assert (await admin.get(path)).json() == ada
    changed = (await admin.patch(path, json={"username": "Ada.L", "role": "admin"})).json()
    assert (changed["id"], changed["username"], changed["role"]) == (ada["id"], "Ada.L", "admin")
    assert (await admin.delete(path)).status_code == 204
    for reply in (await admin.get(path), await admin.patch(path, json={}), await admin.delete(path)):
        assert reply.status_code == 404


async def test_a_name_is_given_once(application: Application) -> None:
    async with application.user("ada"):
        replies = [
            await application.client.post(USERS, json={"username": name, "password": USER_PASSWORD})
            for name in ("ada", "ADA", "Admin")
        ]
    assert [reply.status_code for reply in replies] == [409] * 3


async def test_pages_show_every_user_once(application: Application) -> None:
    for number in range(5):
        await application.client.post(USERS, json={"username": f"user{number}", "password": USER_PASSWORD})
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await application.client.get(USERS, params=query)).json()
        assert len(page["items"]) <= 2
        seen += [user["username"] for user in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == ["admin", *(f"user{number}" for number in range(5))]
    for wrong in ({"cursor": "invented"}, {"limit": 0}, {"limit": 101}):
        assert (await application.client.get(USERS, params=wrong)).status_code == 422


async def test_what_changes_a_user_ends_the_tokens_at_once(application: Application) -> None:
    changes: list[Any] = [{"password": "another password"}, {"role": "admin"}, {"disabled": True}, None]
    for number, change in enumerate(changes):
        async with application.user(f"ada{number}") as ada:
            path = f"{USERS}/{(await ada.get(ME)).json()['id']}"
            for _ in range(10):
                assert (await ada.get(ME)).status_code == 200
            admin = application.client
            assert (await (admin.patch(path, json=change) if change else admin.delete(path))).is_success
            assert (await ada.get(ME)).status_code == 401
            assert (await ada.post("/api/v1/agent/prompt", json={"message": "Hello"})).status_code == 401


async def test_a_new_name_shows_at_once_and_ends_nothing(application: Application) -> None:
    async with application.user() as ada:
        user_id = (await ada.get(ME)).json()["id"]
        await application.client.patch(f"{USERS}/{user_id}", json={"username": "lovelace"})
        assert (await ada.get(ME)).json()["username"] == "lovelace"


async def test_a_disabled_user_comes_back_with_the_same_password_and_a_new_token(application: Application) -> None:
    async with application.user() as ada:
        path = f"{USERS}/{(await ada.get(ME)).json()['id']}"
        await application.client.patch(path, json={"disabled": True})
        form = {"username": "ada", "password": USER_PASSWORD}
        assert (await application.anonymous.post(TOKEN, data=form)).status_code == 401
        await application.client.patch(path, json={"disabled": False})
        assert (await ada.get(ME)).status_code == 401
        async with application.signed_in("ada", USER_PASSWORD) as again:
            assert (await again.get(ME)).status_code == 200


async def test_a_change_is_whole_or_not_at_all(application: Application) -> None:
    async with application.user("ada") as ada, application.user("bob"):
        path = f"{USERS}/{(await ada.get(ME)).json()['id']}"
        change = {"username": "bob", "role": "admin", "password": "another password", "disabled": True}
        assert (await application.client.patch(path, json=change)).status_code == 409
        assert (await ada.get(ME)).json()["role"] == "user"
        async with application.signed_in("ada", USER_PASSWORD):
            pass


async def test_the_last_administrator_stays(application: Application) -> None:
    path = f"{USERS}/{(await application.client.get(ME)).json()['id']}"
    replies = [
        await application.client.patch(path, json={"role": "user"}),
        await application.client.patch(path, json={"disabled": True}),
        await application.client.delete(path),
    ]
    assert [reply.status_code for reply in replies] == [409] * 3
    assert (await application.client.get(ME)).status_code == 200


WRONG: list[dict[str, Any]] = [
    {"username": ""},
    {"username": "with space"},
    {"username": "x" * 65},
    {"username": "a\x00b"},
    {"password": "short"},
    {"password": "x" * 1025},
    {"password": "é" * 600},
    {"role": "owner"},
    {"id": "chosen"},
    {"token_version": 9},
    {"disabled_at": None},
]


async def test_wrong_and_smuggled_fields_are_named(application: Application) -> None:
    for fields in WRONG:
        body = {"username": "ada", "password": USER_PASSWORD, **fields}
        reply = await application.client.post(USERS, json=body)
        assert reply.status_code == 422, fields
        assert reply.json()["errors"][0]["field"] == next(iter(fields))
        assert USER_PASSWORD not in reply.text


async def test_what_was_asked_by_somebody_who_is_deleted_meanwhile_is_kept_for_nobody(application: Application) -> None:
    gone = Caller(id="0" * 32, username="gone", role="user")
    with pytest.raises(NotFound):
        await application.runtime.responses.keep(gone, "resp_1", b"{}", b"{}")


async def test_a_name_with_nul_is_nobodys(application: Application) -> None:
    """Which PostgreSQL refuses even in a question."""
    form = {"username": "ada\0", "password": USER_PASSWORD}
    assert (await application.anonymous.post(TOKEN, data=form)).status_code == 401
    for path in ("/api/v1/users/%00", "/v1/responses/a%00b", "/api/v1/users?cursor=%00"):
        assert (await application.client.get(path)).status_code == 400
