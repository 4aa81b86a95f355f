"""`/performance/requests/{id}`: a request explains itself, to its caller and to administrators alone."""

import logging
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.logs import request_id
from tests.application import Application, open_application

REQUESTS = "/api/v1/performance/requests"
PROMPT = "/api/v1/agent/prompt"


async def ask(client: httpx2.AsyncClient, request_id: str, message: str = "hello", **fields: Any) -> httpx2.Response:
    return await client.post(PROMPT, json={"message": message, **fields}, headers={"X-Request-ID": request_id})


async def story(client: httpx2.AsyncClient, request_id: str) -> dict[str, Any]:
    reply = await client.get(f"{REQUESTS}/{request_id}")
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_a_miss_names_the_ingredient_that_differed(application: Application) -> None:
    await ask(application.client, "first")
    await ask(application.client, "other-prompt", "hello you")
    await ask(application.client, "other-settings", model_settings={"temperature": 0.5})
    await ask(application.client, "again")
    first = await story(application.client, "first")
    assert (first["cache"]["state"], first["cache"]["differs"]) == ("MISS", [])
    assert (await story(application.client, "other-prompt"))["cache"]["differs"] == ["prompt"]
    told = await story(application.client, "other-settings")
    assert told["cache"]["differs"] == ["settings"]
    assert any("other model settings" in sentence for sentence in told["explanation"])
    assert (await story(application.client, "again"))["cache"]["state"] == "HIT"


async def test_the_line_of_a_request_in_the_log_has_its_id(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[tuple[str, str | None]] = []

    def read(record: logging.LogRecord) -> bool:
        lines.append((record.getMessage().rpartition(" 200 ")[0], request_id.get()))
        return True

    access = logging.getLogger("app.access")
    access.addFilter(read)
    try:
        with caplog.at_level(logging.INFO, access.name):
            await application.client.get("/livez", headers={"X-Request-ID": "health"})
            await ask(application.client, "asked")
            await ask(application.client, "kept")
            await ask(application.client, "known")
    finally:
        access.removeFilter(read)
    assert lines == [("GET /livez", "health"), *((f"POST {PROMPT}", name) for name in ("asked", "kept", "known"))]


async def test_the_stages_are_in_order_and_within_the_whole(application: Application) -> None:
    await ask(application.client, "mine")
    told = await story(application.client, "mine")
    assert [stage["name"] for stage in told["stages"]] == ["cache", "agent pool", "model"]
    assert (told["route"], told["status"], told["agent"], told["model"]) == (
        f"POST {PROMPT}",
        200,
        "default",
        "offline",
    )
    for stage in told["stages"]:
        assert 0 <= stage["start_ms"] <= stage["start_ms"] + stage["duration_ms"] <= told["duration_ms"] + 0.01


async def test_others_do_not_see_it_and_administrators_do(application: Application) -> None:
    user = {"username": "ada", "password": "a password for tests", "role": "user"}
    await application.client.post("/api/v1/users", json=user)
    form = {"username": "ada", "password": "a password for tests"}
    token = (await application.anonymous.post("/api/v1/auth/token", data=form)).json()["access_token"]
    ada = {"Authorization": f"Bearer {token}"}
    await ask(application.client, "of-admin")
    sent = {**ada, "X-Request-ID": "of-ada"}
    assert (await application.anonymous.post(PROMPT, json={"message": "hi"}, headers=sent)).status_code == 200
    assert (await application.anonymous.get(f"{REQUESTS}/of-admin", headers=ada)).status_code == 404
    assert (await application.anonymous.get(f"{REQUESTS}/of-ada", headers=ada)).status_code == 200
    assert (await application.anonymous.get(f"{REQUESTS}/of-ada")).status_code == 401
    assert (await story(application.client, "of-ada"))["request_id"] == "of-ada"
    seen = (await application.anonymous.get(REQUESTS, headers=ada)).json()["slowest"]
    assert {each["request_id"] for each in seen} >= {"of-ada"}
    assert "of-admin" not in {each["request_id"] for each in seen}
    assert "of-admin" in {each["request_id"] for each in (await application.client.get(REQUESTS)).json()["slowest"]}


async def test_what_is_not_known_is_a_404(application: Application) -> None:
    assert (await application.client.get(f"{REQUESTS}/never-seen")).status_code == 404
    assert (await application.client.get(f"{REQUESTS}/no%20id")).status_code == 422


async def test_another_worker_can_tell_it_too(application: Application) -> None:
    await ask(application.client, "mine")
    await application.runtime.totals.report()
    application.runtime.metrics.stories.take_unshown()
    application.runtime.metrics.stories._recent.clear()  # pyright: ignore[reportPrivateUsage] - as if it were another's
    assert (await story(application.client, "mine"))["cache"]["state"] == "MISS"


@pytest.mark.usefixtures("fake")
async def test_failed_attempts_and_the_error_are_told(tmp_path: Path) -> None:
    async with open_application(tmp_path / "data", default_model="openai-chat:gpt-4o-mini") as application:
        assert (await ask(application.client, "bad", "fault:503")).status_code == 502
        told = await story(application.client, "bad")
        picture = (await application.client.get("/api/v1/performance/metrics")).json()
    assert [attempt["outcome"] == "ok" for attempt in told["attempts"]] == [False, False]
    assert told["error"] == "provider-failed"
    assert told["attempts"][0]["model"] == "openai-chat:gpt-4o-mini"
    assert any("2 of 2 requests to models failed" in sentence for sentence in told["explanation"])
    assert (picture["model_calls"]["total"], picture["model_calls"]["retries"]) == (1, 1)
