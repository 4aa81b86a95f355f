"""Who gets where: every route of the OpenAPI document, tried as nobody, as somebody else, and as no administrator."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.application import Application, open_application

PUBLIC = {
    "GET /livez",
    "GET /health",
    "GET /readyz",
    "GET /dashboard",
    "POST /api/v1/auth/token",
    "GET /api/v1/performance/health-detailed",
    # Open on loopback, which is where the tests are.
    "GET /metrics",
}
"""The contract's routes without a login; `/docs` and `/openapi.json` are not in the document."""

ADMIN_ONLY = ("/api/v1/users", "/api/v1/agents/reload", "/api/v1/performance/cache/clear")
"""What these paths begin with is for administrators; a test finds one that is forgotten here."""

BODIES: dict[str, dict[str, Any]] = {
    "PATCH /api/v1/users/{user_id}": {"role": "admin"},
    "PATCH /api/v1/conversations/{conversation_id}": {"title": "mine now"},
    "POST /api/v1/conversations/{conversation_id}/fork": {},
}
"""Bodies that would be accepted, so that nothing but ownership is in the way."""


async def _key_of(owner: httpx2.AsyncClient) -> str:
    return (await owner.post("/api/v1/auth/api-keys", json={"name": "laptop"})).json()["id"]


async def _user_of(owner: httpx2.AsyncClient) -> str:
    return (await owner.get("/api/v1/auth/me")).json()["id"]


async def _request_of(owner: httpx2.AsyncClient) -> str:
    return (await owner.post("/api/v1/agent/prompt", json={"message": "Hello"})).headers["x-request-id"]


async def _conversation_of(owner: httpx2.AsyncClient) -> str:
    return (await owner.post("/api/v1/conversations", json={})).json()["id"]


async def _response_of(owner: httpx2.AsyncClient) -> str:
    return (await owner.post("/v1/responses", json={"model": "default", "input": "Hello"})).json()["id"]


def told(reply: httpx2.Response, ids: Iterable[str]) -> str:
    """What the reply says, without what is different in every reply."""
    body = reply.json()
    text = str(body["error"] if "error" in body else body["detail"])
    for value in ids:
        text = text.replace(value, "…")
    return text


MAKERS: dict[str, Callable[[httpx2.AsyncClient], Awaitable[str]] | None] = {
    "key_id": _key_of,
    "user_id": _user_of,
    "request_id": _request_of,
    "conversation_id": _conversation_of,
    "response_id": _response_of,
    "name": None,
}
"""How a user comes to own what a path parameter names; `None` for what belongs to nobody (agents).

Whoever adds a route with another parameter adds a line here.
"""


@pytest.fixture
async def application(tmp_path: Path, installed_url: str) -> AsyncIterator[Application]:
    async with open_application(tmp_path / "data", database_url=installed_url) as opened:
        yield opened


def operations(application: Application) -> Iterator[tuple[str, str, list[str]]]:
    """Method, path and path parameters of every operation."""
    for path, methods in application.door.api.openapi()["paths"].items():
        for method, operation in methods.items():
            named = [field["name"] for field in operation.get("parameters", ()) if field["in"] == "path"]
            yield method.upper(), path, named


async def send(client: httpx2.AsyncClient, method: str, path: str, **ids: str) -> httpx2.Response:
    body = BODIES.get(f"{method} {path}", {}) if method in {"POST", "PUT", "PATCH"} else None
    return await client.request(method, path.format(**ids), json=body)


async def test_only_the_public_routes_answer_nobody(application: Application) -> None:
    seen: set[str] = set()
    for method, path, named in operations(application):
        operation = f"{method} {path}"
        seen.add(operation)
        reply = await send(application.anonymous, method, path, **dict.fromkeys(named, "x"))
        if operation in PUBLIC:
            assert reply.status_code not in (401, 403), operation
        else:
            assert reply.status_code == 401, f"{operation} answers {reply.status_code} to nobody"
            assert reply.headers["www-authenticate"] == "Bearer"
    assert len(seen) > 20


async def test_what_belongs_to_one_user_does_not_exist_for_another(application: Application) -> None:
    tried = 0
    async with application.user("ada") as ada, application.user("bob") as bob:
        for method, path, named in operations(application):
            if not named:
                continue
            unknown = [name for name in named if name not in MAKERS]
            assert not unknown, f"{method} {path}: say in MAKERS how {unknown} comes to be"
            makers = {name: make for name in named if (make := MAKERS[name]) is not None}
            if not makers:
                continue
            ids = {name: await make(ada) for name, make in makers.items()}
            theirs = await send(bob, method, path, **ids)
            invented = {name: f"{value[:-2]}00" for name, value in ids.items()}
            absent = await send(bob, method, path, **invented)
            # Where nobody but an administrator may come, the id makes no difference either.
            expected = 403 if path.startswith(ADMIN_ONLY) else 404
            assert theirs.status_code == expected, f"{method} {path} answers {theirs.status_code} to somebody else"
            assert absent.status_code == expected
            assert told(theirs, ids.values()) == told(absent, invented.values())
            tried += 1
            if expected == 404:
                # The control: the owner gets there.
                assert (await send(ada, method, path, **ids)).is_success, f"{method} {path}"
    assert tried >= 5


async def test_users_administer_nothing(application: Application) -> None:
    tried = 0
    async with application.user("ada") as ada:
        for method, path, named in operations(application):
            if path.startswith(ADMIN_ONLY):
                reply = await send(ada, method, path, **dict.fromkeys(named, "x"))
                assert reply.status_code == 403, f"{method} {path} answers {reply.status_code} to a user"
                tried += 1
        assert (await ada.get("/api/v1/auth/me")).json()["role"] == "user"
    assert tried >= 7


async def test_every_route_for_administrators_is_known_here(application: Application) -> None:
    def asks_for_an_admin(dependant: Any) -> bool:
        called = getattr(dependant.call, "__name__", "")
        return called == "_admin" or any(asks_for_an_admin(inner) for inner in dependant.dependencies)

    found = {
        route.path
        for router in application.door.api.routes
        for route in getattr(getattr(router, "original_router", None), "routes", [router])
        if hasattr(route, "dependant") and asks_for_an_admin(route.dependant)
    }
    assert len(found) >= 4
    assert not {path for path in found if not path.startswith(ADMIN_ONLY)}


async def test_no_body_takes_a_field_that_it_does_not_name(application: Application) -> None:
    smuggled = {"role": "admin", "user_id": "somebody", "id": "chosen", "is_admin": True, "owner": "somebody"}
    schemas = application.door.api.openapi()["components"]["schemas"]
    bodies = 0
    for path, methods in application.door.api.openapi()["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None or path.startswith("/v1/"):  # OpenAI's clients send fields that are newer than we are
                continue
            schema = content["schema"]
            schema = schema if "$ref" not in schema else schemas[schema["$ref"].rpartition("/")[2]]
            known = schema.get("properties", {})
            assert schema.get("additionalProperties") is False, f"{method} {path} takes any field"
            ids = dict.fromkeys(MAKERS, "x")
            for field, value in smuggled.items():
                if field in known:
                    continue
                reply = await application.client.request(method.upper(), path.format(**ids), json={field: value})
                assert reply.status_code == 422, f"{method} {path} with {field}: {reply.status_code}"
                assert field in [fault["field"] for fault in reply.json()["errors"]]
            bodies += 1
    assert bodies >= 5
