"""Ways in that must not be: forged and stale tokens, tokens in a URL, guessed passwords, invented addresses."""

import time
from typing import Any

import httpx2
import jwt
import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tests.application import ADMIN_PASSWORD, Application

ME = "/api/v1/auth/me"
TOKEN = "/api/v1/auth/token"
pyjwt: Any = jwt


async def status_of(application: Application, credential: str) -> int:
    async with application.with_credential(credential) as client:
        return (await client.get(ME)).status_code


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
async def test_no_forged_token_is_accepted(application: Application) -> None:
    good = application.client.headers["authorization"].removeprefix("Bearer ")
    claims = pyjwt.decode(good, options={"verify_signature": False})
    header = pyjwt.get_unverified_header(good)
    key = (application.runtime.settings.data_dir / "secret.key").read_bytes()

    def forged(changes: dict[str, Any], *, key: Any = key, algorithm: str = "HS256", **more: Any) -> str:
        changed = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        return pyjwt.encode(changed, key, algorithm=algorithm, headers={**header, "alg": algorithm, **more})

    # The control: this forger knows the key, and what it makes is good unless something is wrong with it.
    assert await status_of(application, forged({})) == 200
    now = time.time()
    bad = {
        "alg none": forged({}, key=None, algorithm="none"),
        "HS512": forged({}, algorithm="HS512"),
        "weak secret": forged({}, key=b"secret"),
        "kid is a path": forged({}, key=b"\0" * 32, kid="../../../dev/null"),
        "jku": forged({}, key=b"x" * 32, jku="http://127.0.0.1:1/keys"),
        "expired": forged({"exp": now - 60}),
        "from the future": forged({"iat": now + 3600}),
        "not yet": forged({"nbf": now + 3600}),
        "an older version": forged({"ver": claims["ver"] - 1}),
        "a later version": forged({"ver": claims["ver"] + 1}),
        "nobody": forged({"sub": "nobody"}),
        **{f"without {name}": forged({name: None}) for name in claims},
    }
    for attack, token in bad.items():
        assert await status_of(application, token) == 401, attack


async def test_a_token_counts_nowhere_but_in_its_header(application: Application) -> None:
    token = application.client.headers["authorization"].removeprefix("Bearer ")
    anonymous = application.anonymous
    replies = [
        await anonymous.get(ME, params={name: token}) for name in ("access_token", "token", "authorization", "api_key")
    ]
    replies.append(await anonymous.get(ME, headers={"X-Api-Key": token, "Cookie": f"access_token={token}"}))
    assert [reply.status_code for reply in replies] == [401] * 5


async def try_passwords(client: httpx2.AsyncClient, number: int, **headers: str) -> list[int]:
    form = {"username": "admin", "password": "wrong"}
    return [(await client.post(TOKEN, data=form, headers=headers)).status_code for _ in range(number)]


async def test_five_wrong_passwords_and_then_not_even_the_right_one(application: Application) -> None:
    statuses = await try_passwords(application.anonymous, 7)
    assert statuses == [401] * 5 + [429] * 2
    right = await application.anonymous.post(TOKEN, data={"username": "ADMIN", "password": ADMIN_PASSWORD})
    assert right.status_code == 429
    assert 1 <= int(right.headers["retry-after"]) <= 12
    # Who is in stays in.
    assert (await application.client.get(ME)).status_code == 200


async def test_an_invented_address_is_no_way_around(application: Application) -> None:
    peers: list[str] = []

    async def spy(scope: Any, receive: Any, send: Any) -> None:
        peers.append(scope["client"][0])
        await application.door(scope, receive, send)

    # As `server.py` puts it in front where TRUSTED_PROXIES names the proxy.
    behind_proxy: Any = ProxyHeadersMiddleware(spy, trusted_hosts=["10.0.0.1"])
    for peer, sent, seen in (
        ("192.0.2.9", "203.0.113.1", "192.0.2.9"),  # no proxy of ours
        ("10.0.0.1", "203.0.113.1, 198.51.100.7", "198.51.100.7"),  # the last that no proxy of ours wrote
        ("10.0.0.1", "203.0.113.1, 198.51.100.7, 10.0.0.1", "198.51.100.7"),
    ):
        transport = httpx2.ASGITransport(behind_proxy, client=(peer, 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            await client.get("/livez", headers={"X-Forwarded-For": sent})
        assert peers[-1] == seen
    statuses: list[int] = []
    for number in range(8):
        statuses += await try_passwords(application.anonymous, 1, **{"X-Forwarded-For": f"203.0.113.{number}"})
    assert statuses == [401] * 5 + [429] * 3
