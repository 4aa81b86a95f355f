"""Signing in, being recognised, and being refused."""

from pathlib import Path

import pytest

from app.db.users import disable_user
from tests.application import ADMIN_PASSWORD, Application, open_application

TOKEN = "/api/v1/auth/token"
ME = "/api/v1/auth/me"


async def test_the_right_password_gives_a_token_that_names_its_owner(application: Application) -> None:
    reply = await application.anonymous.post(TOKEN, data={"username": "admin", "password": ADMIN_PASSWORD})
    token = reply.json()
    me = await application.anonymous.get(ME, headers={"Authorization": f"Bearer {token['access_token']}"})
    assert token["token_type"] == "bearer"
    assert token["expires_in"] == 3600
    assert me.json()["username"] == "admin"
    assert me.json()["role"] == "admin"
    assert me.json().keys() == {"id", "username", "role"}


async def test_an_unknown_name_and_a_wrong_password_are_refused_alike(application: Application) -> None:
    unknown = await application.anonymous.post(TOKEN, data={"username": "nobody", "password": ADMIN_PASSWORD})
    wrong = await application.anonymous.post(TOKEN, data={"username": "admin", "password": "wrong"})
    assert unknown.status_code == wrong.status_code == 401
    same = {"type", "title", "status", "detail"}
    assert {key: unknown.json()[key] for key in same} == {key: wrong.json()[key] for key in same}


@pytest.mark.parametrize(
    "authorization", [None, "Bearer", "Bearer ", "Basic YTpi", "Bearer not.a.token", "Bearer mn_x_y"]
)
async def test_no_or_bad_credentials_are_a_401(application: Application, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    reply = await application.anonymous.get(ME, headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"


async def test_logging_out_everywhere_ends_every_token_at_once(application: Application) -> None:
    other = await application.anonymous.post(TOKEN, data={"username": "admin", "password": ADMIN_PASSWORD})
    elsewhere = {"Authorization": f"Bearer {other.json()['access_token']}"}
    assert (await application.anonymous.get(ME, headers=elsewhere)).status_code == 200
    assert (await application.client.post("/api/v1/auth/logout")).status_code == 204
    assert (await application.client.get(ME)).status_code == 401
    assert (await application.anonymous.get(ME, headers=elsewhere)).status_code == 401


async def test_a_new_password_ends_every_token_and_works(application: Application) -> None:
    change = {"old_password": ADMIN_PASSWORD, "new_password": "another long password"}
    assert (await application.client.post("/api/v1/auth/password", json=change)).status_code == 204
    assert (await application.client.get(ME)).status_code == 401
    for password, status in ((ADMIN_PASSWORD, 401), ("another long password", 200)):
        reply = await application.anonymous.post(TOKEN, data={"username": "admin", "password": password})
        assert reply.status_code == status


async def test_a_wrong_old_password_changes_nothing(application: Application) -> None:
    change = {"old_password": "wrong", "new_password": "another long password"}
    assert (await application.client.post("/api/v1/auth/password", json=change)).status_code == 401
    assert (await application.client.get(ME)).status_code == 200


async def test_a_disabled_user_is_refused(application: Application) -> None:
    me = (await application.client.get(ME)).json()
    async with application.runtime.database.write() as session:
        from app.db.users import create_user

        await create_user(session, username="second", password_hash="x", role="admin")
        await disable_user(session, me["id"])
    await application.runtime.callers.forget_everywhere()
    assert (await application.client.get(ME)).status_code == 401
    reply = await application.anonymous.post(TOKEN, data={"username": "admin", "password": ADMIN_PASSWORD})
    assert reply.status_code == 401


@pytest.mark.service
async def test_a_database_that_is_away_is_a_503_and_never_a_401(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue("postgres_url")
    server = request.getfixturevalue("postgres_server")
    async with open_application(tmp_path, database_url=url) as application:
        assert (await application.client.get(ME)).status_code == 200
        server.kill()
        await application.runtime.callers.forget_everywhere()
        replies = [
            await application.client.get(ME),
            await application.anonymous.post(TOKEN, data={"username": "admin", "password": ADMIN_PASSWORD}),
            await application.anonymous.get("/readyz"),
        ]
        alive = await application.anonymous.get("/livez")
        server.heal()
        back = await application.client.get(ME)
    assert [reply.status_code for reply in replies] == [503] * 3
    assert all("retry-after" in reply.headers for reply in replies)
    assert alive.status_code == 200
    assert back.status_code == 200
