"""API keys: made once, shown once, and refused from the moment they end."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.core.api_keys import digest_of, id_in, is_key_of, new_api_key
from app.db.api_keys import find_api_key
from tests.application import Application, open_application

KEYS = "/api/v1/auth/api-keys"
ME = "/api/v1/auth/me"

AGENTS = {"poet": "instructions: Rhyme.\n", "clerk": "instructions: Be brief.\n"}


@pytest.fixture
async def application(tmp_path: Path, installed_url: str) -> AsyncIterator[Application]:
    folder = tmp_path / "agents"
    folder.mkdir()
    for name, text in AGENTS.items():
        (folder / f"{name}.yaml").write_text(text)
    async with open_application(tmp_path / "data", database_url=installed_url, agents_dir=folder) as opened:
        yield opened


async def made(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    reply = await client.post(KEYS, json={"name": "laptop", **fields})
    assert reply.status_code == 201, reply.text
    return reply.json()


def test_keys_have_a_form_and_are_never_alike() -> None:
    keys = dict(new_api_key() for _ in range(200))
    assert len(set(keys.values())) == 200
    for key_id, key in keys.items():
        start, middle, secret = key.split("_")
        assert (start, middle, len(key_id) >= 8, len(secret)) == ("mn", key_id, True, 43)
        assert secret.isalnum()
        assert id_in(key) == key_id
        assert is_key_of(key, digest_of(key))
        assert not is_key_of(key[:-1] + ("a" if key[-1] != "a" else "b"), digest_of(key))


async def test_a_key_is_shown_once_and_lets_its_owner_in(application: Application) -> None:
    async with application.user() as ada:
        key = await made(ada, expires_in_days=30)
        assert key["key"].startswith(f"mn_{key['id']}_")
        assert key["prefix"] == f"mn_{key['id']}"
        left = datetime.fromisoformat(key["expires_at"]) - datetime.now(UTC)
        assert timedelta(days=29) < left <= timedelta(days=30)
        (listed,) = (await ada.get(KEYS)).json()
        assert listed == {name: value for name, value in key.items() if name != "key"}
        assert key["key"] not in (await ada.get(KEYS)).text
        async with application.with_credential(key["key"]) as program:
            assert (await program.get(ME)).json() == (await ada.get(ME)).json()
            reply = await program.post("/api/v1/agent/prompt", json={"message": "Hello"})
            assert reply.status_code == 200
    assert (await application.client.get(KEYS)).json() == []


async def test_of_a_key_only_its_digest_is_stored(application: Application) -> None:
    key = await made(application.client)
    async with application.runtime.database.read() as session:
        found = await find_api_key(session, key["id"])
    assert found is not None
    assert found[0].digest == digest_of(key["key"])
    assert key["key"].rsplit("_")[-1] not in repr(found)


async def test_almost_a_key_is_refused(application: Application) -> None:
    key = (await made(application.client))["key"]
    other = (await made(application.client))["key"]
    head, secret = key.rsplit("_", 1)
    almost = {
        "one character": key[:-1] + ("a" if key[-1] != "a" else "b"),
        "cut": key[:-1],
        "longer": f"{key}a",
        "other id": f"{other.rsplit('_', 1)[0]}_{secret}",
        "no secret": f"{head}_",
        "case": f"{head}_{secret.swapcase()}",
        "space": f"{key} x",
    }
    for fault, wrong in almost.items():
        async with application.with_credential(wrong) as client:
            reply = await client.get(ME)
        assert reply.status_code == 401, fault
        assert reply.headers["www-authenticate"] == "Bearer"


async def test_a_deleted_key_is_refused_from_the_next_request_on(application: Application) -> None:
    kept, deleted = [await made(application.client) for _ in range(2)]
    async with (
        application.with_credential(deleted["key"]) as program,
        application.with_credential(kept["key"]) as other,
    ):
        for _ in range(20):
            assert (await program.get(ME)).status_code == 200
        assert (await application.client.delete(f"{KEYS}/{deleted['id']}")).status_code == 204
        assert (await program.get(ME)).status_code == 401
        assert (await other.get(ME)).status_code == 200
    assert (await application.client.delete(f"{KEYS}/{deleted['id']}")).status_code == 404
    assert [key["id"] for key in (await application.client.get(KEYS)).json()] == [kept["id"]]


async def test_a_key_ends_by_itself(application: Application) -> None:
    key = await made(application.client, expires_in_days=1.2 / 86_400)
    async with application.with_credential(key["key"]) as program:
        assert (await program.get(ME)).status_code == 200
        # Remembered for a second, and yet never beyond its end.
        deadline = datetime.fromisoformat(key["expires_at"]) + timedelta(seconds=5)
        while (reply := await program.get(ME)).status_code == 200:
            assert datetime.now(UTC) < deadline
            await asyncio.sleep(0.02)
        assert datetime.now(UTC) >= datetime.fromisoformat(key["expires_at"])
    assert reply.status_code == 401


async def test_keys_end_with_what_made_their_owner_trusted(application: Application) -> None:
    changes: list[Any] = [{"password": "a new password"}, {"role": "admin"}, {"disabled": True}, None]
    for number, change in enumerate(changes):
        async with application.user(f"ada{number}") as ada:
            path = f"/api/v1/users/{(await ada.get(ME)).json()['id']}"
            async with application.with_credential((await made(ada))["key"]) as program:
                assert (await program.get(ME)).status_code == 200
                admin = application.client
                assert (await (admin.patch(path, json=change) if change else admin.delete(path))).is_success
                assert (await program.get(ME)).status_code == 401
                if change == {"disabled": True}:
                    assert (await admin.patch(path, json={"disabled": False})).is_success
                    assert (await program.get(ME)).status_code == 401


async def test_a_key_for_some_agents_knows_no_other(application: Application) -> None:
    key = await made(application.client, agents=["poet", "poet"])
    assert key["agents"] == ["poet"]
    async with application.with_credential(key["key"]) as program:

        async def ask(agent: str) -> httpx2.Response:
            return await program.post("/api/v1/agent/prompt", json={"message": "Hello", "agent": agent})

        assert [agent["name"] for agent in (await program.get("/api/v1/agents")).json()] == ["poet"]
        assert (await ask("poet")).status_code == 200
        for other in ("clerk", "default", "nowhere"):
            replies = [await ask(other), await program.get(f"/api/v1/agents/{other}")]
            assert [reply.status_code for reply in replies] == [404, 404]
            assert all(reply.json()["detail"].endswith("there are: poet") for reply in replies)
        assert (await program.post("/api/v1/agent/prompt", json={"message": "Hello"})).status_code == 404
        # Its maker is an administrator; the key is not.
        assert (await program.get(ME)).json()["role"] == "user"
        assert (await program.get("/api/v1/users")).status_code == 403


async def test_a_limited_key_is_not_answered_from_what_its_owner_asked_elsewhere(application: Application) -> None:
    key = await made(application.client, agents=["poet"])
    assert (await application.prompt("the same question", agent="clerk")).status_code == 200
    async with application.with_credential(key["key"]) as program:
        body = {"message": "the same question", "agent": "clerk"}
        for _ in range(3):
            assert (await program.post("/api/v1/agent/prompt", json=body)).status_code == 404


async def test_a_key_carries_its_own_limits_and_flags(application: Application) -> None:
    fields = {"requests_per_minute": 5, "tokens_per_minute": 1000, "chat_ui": True}
    key = await made(application.client, **fields)
    assert {name: key[name] for name in fields} == fields
    caller = await application.runtime.callers.recognise(key["key"])
    assert (caller.requests_per_minute, caller.tokens_per_minute, caller.chat_ui) == (5, 1000, True)
    assert (caller.key_id, caller.agents, caller.is_admin) == (key["id"], None, True)


async def test_a_key_makes_and_ends_no_credentials(application: Application) -> None:
    key = await made(application.client)
    async with application.with_credential(key["key"]) as program:
        replies = [
            await program.post(KEYS, json={"name": "another"}),
            await program.delete(f"{KEYS}/{key['id']}"),
            await program.post("/api/v1/auth/logout"),
            await program.post("/api/v1/auth/password", json={"old_password": "x", "new_password": "long enough"}),
        ]
        assert [reply.status_code for reply in replies] == [403] * 4
        assert len((await program.get(KEYS)).json()) == 1


async def test_logging_out_leaves_the_keys(application: Application) -> None:
    key = await made(application.client)
    assert (await application.client.post("/api/v1/auth/logout")).status_code == 204
    async with application.with_credential(key["key"]) as program:
        assert (await program.get(ME)).status_code == 200


WRONG: list[dict[str, Any]] = [
    {"name": ""},
    {"name": "x" * 201},
    {"name": "a\x00b"},
    {"expires_in_days": 0},
    {"expires_in_days": -1},
    {"expires_in_days": 1e9},
    {"agents": []},
    {"requests_per_minute": 0},
    {"id": "chosen"},
    {"user_id": "somebody"},
    {"key": "mn_chosen00_x"},
    {"role": "admin"},
]


async def test_a_key_cannot_be_made_to_be_more(application: Application) -> None:
    for fields in WRONG:
        reply = await application.client.post(KEYS, json={"name": "laptop", **fields})
        assert reply.status_code == 422, fields
        assert reply.json()["errors"][0]["field"].split(".")[0] == next(iter(fields))


async def test_the_last_use_is_written_in_groups(application: Application) -> None:
    keys = [await made(application.client) for _ in range(3)]
    for key in keys[:2]:
        async with application.with_credential(key["key"]) as program:
            await program.get(ME)
    assert [key["last_used_at"] for key in (await application.client.get(KEYS)).json()] == [None] * 3
    await application.runtime.key_uses.flush()
    used = [key["last_used_at"] is not None for key in (await application.client.get(KEYS)).json()]
    assert used == [True, True, False]
