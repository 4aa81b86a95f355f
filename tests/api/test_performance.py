"""The performance API, through the front door: what was done is what is reported."""

import asyncio
from pathlib import Path

from tests.application import Application, open_application

METRICS = "/api/v1/performance/metrics"
HEALTH = "/api/v1/performance/health-detailed"
PROMPT_ROUTE = "POST /api/v1/agent/prompt"
DISTRIBUTION = {"count", "mean", "p50", "p95", "p99", "max"}


async def test_prompts_are_counted_exactly_by_route_and_model(application: Application) -> None:
    for number in range(20):
        assert (await application.prompt(f"hello {number}")).status_code == 200
    assert (await application.client.post("/api/v1/agent/prompt", json={})).status_code == 422
    picture = (await application.client.get(METRICS)).json()
    (route,) = [route for route in picture["requests"]["routes"] if route["route"] == PROMPT_ROUTE]
    assert route["count"] == route["response_time_ms"]["count"] == 21
    assert route["errors"] == 0
    assert picture["requests"]["total"] == picture["requests"]["response_time_ms"]["count"]
    assert picture["requests"]["by_status"]["4xx"] == 1
    assert picture["model_calls"]["total"] == picture["model_calls"]["latency_ms"]["count"] == 20
    assert picture["model_calls"]["output_tokens"] > 0
    assert picture["agent_pool"]["hits"] + picture["agent_pool"]["misses"] == 20
    assert picture["windows"]["1m"]["model_calls"] == 20


async def test_the_picture_has_every_field_of_the_contract(application: Application) -> None:
    picture = (await application.client.get(METRICS)).json()
    assert picture["scope"] == {"workers": 1, "replicas": 1}
    assert picture.keys() >= {"uptime_seconds", "started_at", "agent_pool", "cache"}
    assert picture["system"].keys() >= {"cpu_percent", "memory", "disk"}
    assert picture["system"]["memory"].keys() >= {"total_bytes", "used_bytes", "percent"}
    assert picture["process"]["rss_bytes"] > 10_000_000
    assert picture["process"]["open_files"] > 3
    assert picture["process"]["event_loop_lag_ms"].keys() == {"p50", "p95", "p99"}
    assert picture["requests"]["in_flight"] == 1
    assert picture["requests"]["response_time_ms"].keys() == DISTRIBUTION
    assert picture["model_calls"]["latency_ms"].keys() == DISTRIBUTION
    assert picture["model_calls"].keys() >= {"total", "errors", "retries", "input_tokens", "output_tokens", "cost_usd"}
    assert picture["database"]["backend"] == "sqlite"
    assert picture["database"]["pool_size"] == 20
    assert picture["database"]["wait_ms"]["count"] > 0


async def test_invented_paths_and_methods_make_no_series(application: Application) -> None:
    for number in range(50):
        await application.anonymous.get(f"/nothing/{number}")
        await application.anonymous.request(f"M{number}", "/livez")
    picture = (await application.client.get(METRICS)).json()
    routes = {route["route"]: route["count"] for route in picture["requests"]["routes"]}
    assert routes["unmatched"] == 50
    assert routes["OTHER /livez"] == 50
    assert len(routes) < 10


async def test_the_picture_is_for_callers_only(application: Application) -> None:
    assert (await application.anonymous.get(METRICS)).status_code == 401


async def test_health_in_detail_is_public_and_says_nothing_of_the_inside(application: Application) -> None:
    await application.prompt("hello")
    reply = await application.anonymous.get(HEALTH)
    async with asyncio.timeout(10):
        # The checks have deadlines that a busy machine may miss.
        while reply.json()["status"] != "healthy":
            reply = await application.anonymous.get(HEALTH)
    health = reply.json()
    assert reply.status_code == 200
    assert health["checks"].keys() >= {"database", "agents"}
    assert all(check.keys() == {"status", "latency_ms", "reason"} for check in health["checks"].values())
    assert {check["reason"] for check in health["checks"].values()} == {None}
    assert health["performance"]["response_time_ms"]["p50"] > 0
    assert health["performance"]["error_rate"] == 0
    assert str(application.runtime.settings.data_dir) not in reply.text


async def test_a_dead_database_is_unhealthy(tmp_path: Path) -> None:
    async with open_application(tmp_path / "data") as application:
        await application.runtime.database.aclose()
        for file in (tmp_path / "data").glob("mnemosine.db*"):
            file.unlink()
        (tmp_path / "data" / "mnemosine.db").mkdir()
        reply = await application.anonymous.get(HEALTH)
        assert reply.status_code == 503
        assert reply.json()["status"] == "unhealthy"
        assert reply.json()["checks"]["database"]["status"] == "unhealthy"
        assert reply.json()["checks"]["database"]["reason"] == "the database does not answer"
        (tmp_path / "data" / "mnemosine.db").rmdir()
