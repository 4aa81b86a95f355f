"""Bad input: a clear 4xx in the one shape, never a 500, and nothing echoed."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.application import Application

PROMPT = "/api/v1/agent/prompt"

NOT_JSON = {
    "NaN": b'{"message": NaN}',
    "Infinity": b'{"message": "a", "model_settings": {"temperature": Infinity}}',
    "a lone surrogate": b'{"message": "\\ud800"}',
    "a lone surrogate as a key": b'{"\\udfff": 1}',
    "broken UTF-8": b'{"message": "\xff"}',
    "depth 1,000": b"[" * 1000 + b"]" * 1000,
    "a cut body": b'{"message": "a',
    "nothing": b"",
    "5,000 digits": b'{"message": "a", "model_settings": {"seed": ' + b"9" * 5000 + b"}}",
}
WRONG_FIELDS = {
    "NUL": (b'{"message": "a\\u0000b"}', "message"),
    "1e999": (b'{"message": "a", "model_settings": {"temperature": 1e999}}', "model_settings.temperature"),
    "beyond int64": (b'{"message": "a", "model_settings": {"seed": 9223372036854775808}}', "model_settings.seed"),
    "an unknown field": (b'{"message": "a", "massage": 1}', "massage"),
    "no message": (b"{}", "message"),
    "an empty message": (b'{"message": ""}', "message"),
    "a message that is a number": (b'{"message": 7}', "message"),
    "a list": (b"[1]", "body"),
    "null": (b"null", "body"),
    "a role to smuggle in": (b'{"message": "a", "role": "admin"}', "role"),
}


async def post(
    application: Application, body: bytes, content_type: str = "application/json"
) -> tuple[int, dict[str, Any]]:
    reply = await application.client.post(PROMPT, content=body, headers={"Content-Type": content_type})
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["status"] == reply.status_code
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert problem.keys() >= {"type", "title", "detail"}
    return reply.status_code, problem


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_is_not_json_is_a_400(application: Application, body: bytes) -> None:
    status, _ = await post(application, body)
    assert status == 400


@pytest.mark.parametrize(("body", "field"), WRONG_FIELDS.values(), ids=WRONG_FIELDS.keys())
async def test_a_wrong_field_is_a_422_that_names_it(application: Application, body: bytes, field: str) -> None:
    status, problem = await post(application, body)
    assert status == 422
    assert field in [error["field"] for error in problem["errors"]]


async def test_a_422_does_not_echo_what_was_sent(application: Application) -> None:
    _, problem = await post(application, b'{"message": "a", "secret": "canary-77"}')
    assert "canary-77" not in json.dumps(problem)


async def test_a_duplicate_key_is_answered(application: Application) -> None:
    reply = await application.client.post(
        PROMPT, content=b'{"message": "a", "message": "b"}', headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_a_body_that_is_not_declared_json_is_a_415(application: Application, content_type: str) -> None:
    status, _ = await post(application, b'{"message": "a"}', content_type)
    assert status == 415


async def test_a_compressed_body_is_a_415(application: Application) -> None:
    reply = await application.client.post(PROMPT, content=b"x", headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 415


async def test_a_declared_length_over_the_bound_is_a_413(application: Application) -> None:
    reply = await application.prompt("x" * (1024 * 1024))
    assert reply.status_code == 413


async def test_an_undeclared_length_is_counted_while_it_arrives(application: Application) -> None:
    sent = 0

    async def endless() -> AsyncGenerator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b"x" * 65536

    reply = await application.client.post(PROMPT, content=endless(), headers={"Content-Type": "application/json"})
    assert reply.status_code == 413
    # The limit, what is read on for a moment after the refusal, and the parts on their way.
    assert sent <= 1024 * 1024 + 256 * 1024 + 2 * 65536


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", PROMPT, 405), ("DELETE", "/livez", 405), ("POST", "/api/v1/nope", 404)],
)
async def test_what_routing_refuses_has_the_same_shape(
    application: Application, method: str, path: str, status: int
) -> None:
    reply = await application.client.request(method, path)
    assert reply.status_code == status
    assert reply.json()["status"] == status
    assert reply.headers["content-type"] == "application/problem+json"


async def test_under_v1_errors_have_openais_shape(application: Application) -> None:
    reply = await application.client.get("/v1/nope")
    assert reply.status_code == 404
    assert reply.json()["error"].keys() == {"message", "type", "param", "code"}


async def test_what_nobody_expected_is_a_500_that_tells_nothing(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    @application.door.api.get("/broken")
    async def broken() -> None:  # pyright: ignore[reportUnusedFunction]
        raise RuntimeError("canary-99")

    reply = await application.client.get("/broken")
    assert reply.status_code == 500
    assert "canary-99" not in reply.text
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
    assert "canary-99" in caplog.text, "the log has it"


async def test_a_sane_request_id_is_kept_and_an_insane_one_is_replaced(application: Application) -> None:
    kept = await application.client.get("/livez", headers={"X-Request-ID": "order-17.a_b"})
    replaced = await application.client.get("/livez", headers={"X-Request-ID": "a b;c"})
    assert kept.headers["x-request-id"] == "order-17.a_b"
    assert len(replaced.headers["x-request-id"]) == 32


async def test_every_response_carries_the_security_headers(application: Application) -> None:
    for path in ("/livez", "/nope", "/api/v1/auth/me"):
        headers = (await application.anonymous.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "total;dur=" in headers["server-timing"]
        assert "server" not in headers
