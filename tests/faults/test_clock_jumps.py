"""The wall clock of a running server is set, hours or years: nothing that lives for a time minds.

Only tokens go by the dates that are written in them. The control is the clock itself, as the header `Date` shows it.
"""

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.faults.other_clock.sitecustomize import SET_CLOCK
from tests.figures import Figures
from tests.process import ProviderProcess, ServerProcess, providing, serving
from tests.siege import Line

PASSWORD = "a password for tests"
PROMPT = "/api/v1/agent/prompt"
CLOCK = Path(__file__).parent / "other_clock"
HOUR_S = 3600.0
YEARS_S = 10 * 365 * 24 * HOUR_S
LIMIT = 60
"""Prompts a minute: one a second comes back."""


@contextmanager
def serving_by_another_clock(folder: Path, provider: ProviderProcess) -> Generator[ServerProcess]:
    """Two workers whose wall clock `set_clock` sets."""
    settings = {
        "ADMIN_PASSWORD": PASSWORD,
        "ACCESS_TOKEN_EXPIRE_MINUTES": "120",
        "RATE_LIMIT_PER_MINUTE": str(LIMIT),
        "DEFAULT_MODEL": "openai-chat:gpt-4o-mini",
        "OPENAI_API_KEY": "sk-none",
        "OPENAI_BASE_URL": provider.base_url,
        "PYTHONPATH": str(CLOCK),
        "CLOCK_SHIFT_FILE": str(folder / "shift"),
    }
    with serving(folder, "--workers", "2", **settings) as server:
        server.wait_for("/readyz")
        server.sign_in(password=PASSWORD)
        yield server


async def set_clock(server: ServerProcess, folder: Path, seconds: float) -> None:
    """Set the wall clock of all processes of `server` by so much; done when this returns."""
    wanted = time.time() + seconds
    (folder / "shift").write_text(str(seconds))
    supervisor = psutil.Process(server.process.pid)
    for process in [supervisor, *supervisor.children(recursive=True)]:
        process.send_signal(SET_CLOCK)
    async with asyncio.timeout(20):
        right = 0
        while right < 10:
            # Workers write the date anew each second; each request may come to either of them.
            date = parsedate_to_datetime(server.get("/livez").headers["date"]).timestamp()
            right = right + 1 if abs(date - wanted) < 60 else 0
            await asyncio.sleep(0.1)


async def prompts_until_refused(server: ServerProcess, at_most: int = 200) -> tuple[int, float]:
    """How many prompts are answered before one is over the limit, and after how many seconds it may come again."""
    for answered in range(at_most):
        reply = await asyncio.to_thread(server.prompt, "again")
        if reply.status_code == 429:
            return answered, float(reply.headers["retry-after"])
        assert reply.status_code == 200, reply.text
    raise AssertionError("never refused")


@pytest.mark.parametrize("shift_s", [HOUR_S, -HOUR_S, YEARS_S], ids=["an hour on", "an hour back", "ten years on"])
async def test_nothing_that_lives_for_a_time_minds_a_clock_that_is_set(
    tmp_path: Path, shift_s: float, figures: Figures, request: pytest.FixtureRequest
) -> None:
    with providing() as provider, serving_by_another_clock(tmp_path, provider) as server:
        token, server.headers = server.headers, {"Authorization": f"Bearer {server.make_key()}"}
        conversation = server_post(server, "/api/v1/conversations", {}).json()["id"]
        once = {"Idempotency-Key": "once"}
        kept = server_post(server, PROMPT, {"message": "once", "cache": {"mode": "off"}}, **once)
        assert server_post(server, PROMPT, {"message": "again"}).headers["x-cache"] == "MISS"
        assert server_post(server, PROMPT, {"message": "again"}).headers["x-cache"] == "HIT"
        assert [sign_in(server, "ada", "wrong").status_code for _ in range(6)][-1] == 429
        uptime_s = server.get("/api/v1/performance/metrics").json()["uptime_seconds"]
        requests = server.get("/api/v1/performance/metrics").json()["requests"]["total"]
        # A turn that is under way meanwhile.
        provider.control(latency_s=3.0)
        line = await Line.open(server.url)
        line.send("POST", PROMPT, {"message": "slow", "conversation_id": conversation}, **server.headers)
        await asyncio.to_thread(provider.wait_until, lambda stats: stats["in_flight"] > 0)
        await prompts_until_refused(server)
        began = time.monotonic()

        await set_clock(server, tmp_path, shift_s)

        answered, wait_s = await prompts_until_refused(server)
        passed_s = time.monotonic() - began
        figures.note(
            f"the wall clock set {request.node.callspec.id}",
            f"<= {passed_s + 2:.0f} prompts more, refused for <= 2 s",
            f"{answered}, refused for {wait_s:.0f} s",
        )
        assert answered <= passed_s + 2, "the limit came back no faster"
        assert wait_s <= 2, "nor slower"
        slow = await line.hear()
        assert slow.status == 200, slow.body
        await line.aclose()
        provider.control(latency_s=0.0)
        still = sign_in(server, "ada", "wrong")
        assert still.status_code == 429, "nobody is let in by it"
        assert float(still.headers["retry-after"]) <= 61
        assert sign_in(server, "admin", PASSWORD).status_code == 200, "nor shut out"
        me = httpx2.get(f"{server.url}/api/v1/auth/me", headers=token)
        assert me.status_code == (200 if shift_s == HOUR_S else 401), "of two hours one is over, or it is of tomorrow"
        await asyncio.sleep(2)
        again = server_post(server, PROMPT, {"message": "again"})
        assert again.headers["x-cache"] == "HIT", again.text
        assert 0 <= float(again.headers["age"]) <= time.monotonic() - began + 60
        await asyncio.sleep(2)
        next_turn = server_post(server, PROMPT, {"message": "next", "conversation_id": conversation})
        assert next_turn.status_code == 200, next_turn.text
        await asyncio.sleep(2)
        repeated = server_post(server, PROMPT, {"message": "once", "cache": {"mode": "off"}}, **once)
        assert repeated.status_code == 200, repeated.text
        if shift_s < 24 * HOUR_S:
            assert repeated.json()["id"] == kept.json()["id"]
        numbers = server.get("/api/v1/performance/metrics").json()
        assert uptime_s < numbers["uptime_seconds"] < uptime_s + time.monotonic() - began + 60
        assert numbers["requests"]["total"] > requests
        assert numbers["requests"]["response_time_ms"]["p50"] >= 0
        for window in numbers["windows"].values():
            assert window["per_second"] < 100, "a window is as long as it was"
        assert server.get("/api/v1/performance/health-detailed").status_code == 200
        assert server.get("/api/v1/performance/history?range=5m").status_code == 200
        assert server.stop() == 0
        assert "Traceback" not in server.output()


def server_post(server: ServerProcess, path: str, body: object, **headers: str) -> httpx2.Response:
    return httpx2.post(server.url + path, json=body, headers={**server.headers, **headers}, timeout=60)


def sign_in(server: ServerProcess, username: str, password: str) -> httpx2.Response:
    form = {"username": username, "password": password}
    return httpx2.post(f"{server.url}/api/v1/auth/token", data=form, timeout=60)
