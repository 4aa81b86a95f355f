"""Whom this server answers to: Host headers, and pages from elsewhere."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.application import Application, open_application


def is_refused(reply: httpx2.Response) -> bool:
    return (
        reply.status_code == 400
        and reply.headers["content-type"] == "application/problem+json"
        and reply.json()["request_id"] == reply.headers["x-request-id"]
        and "access-control-allow-origin" not in reply.headers
    )


async def status(application: Application, host: str) -> int:
    reply = await application.anonymous.get("/livez", headers={"Host": host})
    assert reply.status_code == 200 or is_refused(reply)
    return reply.status_code


async def test_on_loopback_only_loopbacks_names_are_answered(application: Application) -> None:
    for host in ("127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]", "[::1]:8000"):
        assert await status(application, host) == 200, host
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost/x",
        "127.0.0.1?",
        "a@127.0.0.1",
        "",
        "127.0.0.1:x",
    ):
        assert await status(application, host) == 400, host


async def test_named_hosts_are_answered_and_no_others(tmp_path: Path) -> None:
    async with open_application(tmp_path, allowed_hosts="127.0.0.1,ai.example,*.ai.example") as application:
        for host in ("ai.example", "a.AI.example:443", "b.a.ai.example"):
            assert await status(application, host) == 200, host
        for host in ("localhost", "xai.example", "ai.example.evil.example", ".example"):
            assert await status(application, host) == 400, host


ASKING: dict[str, str] = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


async def test_without_a_setting_no_page_from_elsewhere_is_let_in(application: Application) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1"):
        preflight = await application.anonymous.options("/api/v1/agent/prompt", headers={"Origin": origin, **ASKING})
        simple = await application.client.get("/api/v1/auth/me", headers={"Origin": origin})
        assert preflight.status_code == 405
        for reply in (preflight, simple):
            assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, False),
        ({"Origin": "https://evil.example"}, True),
        ({"Origin": "https://ui.example.evil.example"}, True),
        ({"Origin": "null"}, True),
        ({"Access-Control-Request-Method": "BREW"}, True),
        ({"Access-Control-Request-Headers": "x-secret"}, True),
    ],
)
async def test_a_preflight_is_answered_for_the_origins_that_are_set(
    tmp_path: Path, changes: dict[str, str], refused: bool
) -> None:
    headers = {"Origin": "https://ui.example", **ASKING, **changes}
    async with open_application(tmp_path, allowed_origins="https://ui.example") as application:
        reply = await application.anonymous.options("/api/v1/agent/prompt", headers=headers)
        if not refused:
            assert reply.status_code == 200
            assert reply.headers["access-control-allow-origin"] == "https://ui.example"
            assert "access-control-allow-credentials" not in reply.headers
        elif headers["Origin"] == "https://ui.example":
            assert reply.status_code == 400
            assert reply.headers["content-type"] == "application/problem+json"
        else:
            assert is_refused(reply)


async def test_a_405_names_every_method_of_its_path(application: Application) -> None:
    wanted: dict[str, Any] = {
        "/api/v1/users": "GET, POST",
        "/api/v1/users/x": "DELETE, GET, PATCH",
        "/v1/models/a/b": "GET",
        "/livez": "GET",
    }
    for path, methods in wanted.items():
        reply = await application.client.request("BREW", path)
        assert (reply.status_code, reply.headers["allow"]) == (405, methods)


async def test_who_leaves_before_the_body_has_arrived_is_no_failure_of_ours(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []
    parts: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"name', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/api/v1/auth/api-keys",
        "raw_path": b"/api/v1/auth/api-keys",
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (b"content-length", b"100"),
            (b"authorization", application.client.headers["authorization"].encode()),
        ],
    }
    await application.door(scope, receive, send)
    assert sent[0]["status"] == 400
    assert "failed" not in caplog.text
