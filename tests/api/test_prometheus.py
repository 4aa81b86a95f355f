"""`/metrics`: the official parser reads it, it agrees with the performance API, and it is closed off loopback."""

from pathlib import Path
from typing import Any

import httpx2
import prometheus_client.openmetrics.parser
import prometheus_client.parser

from app.core.exposition import GAUGES, PREFIX, series_name
from app.core.metrics import FAMILIES
from tests.application import Application, open_application

parser: Any = prometheus_client.parser
open_parser: Any = prometheus_client.openmetrics.parser


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_the_numbers_agree_with_the_performance_api(application: Application) -> None:
    for number in range(7):
        await application.prompt(f"hello {number}")
    picture = (await application.client.get("/api/v1/performance/metrics")).json()
    found = samples((await application.anonymous.get("/metrics")).text)
    route = ("route", "POST /api/v1/agent/prompt")
    (prompts,) = [each for each in picture["requests"]["routes"] if each["route"] == route[1]]
    assert found["mnemosine_requests_total", frozenset({route, ("status", "2xx")})] == prompts["count"] == 7
    assert found["mnemosine_response_seconds_count", frozenset({route})] == 7
    assert found["mnemosine_response_seconds_bucket", frozenset({route, ("le", "+Inf")})] == 7
    calls = sum(value for (name, _), value in found.items() if name == "mnemosine_model_calls_total")
    assert calls == picture["model_calls"]["total"] == 7


async def test_every_family_is_declared_for_the_parser(application: Application) -> None:
    text = (await application.anonymous.get("/metrics")).text
    declared = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert declared == {series_name(name) for name in FAMILIES} | {PREFIX + name for name in GAUGES}


async def test_buckets_never_fall(application: Application) -> None:
    await application.prompt("hello")
    found = samples((await application.anonymous.get("/metrics")).text)
    rows = [
        (float(dict(labels)["le"]), value)
        for (name, labels), value in found.items()
        if name == "mnemosine_response_seconds_bucket" and ("route", "POST /api/v1/agent/prompt") in labels
    ]
    counts = [value for _, value in sorted(rows)]
    assert counts == sorted(counts)


async def test_off_loopback_it_wants_a_login(tmp_path: Path) -> None:
    async with open_application(tmp_path / "data", host="0.0.0.0") as application:
        assert (await application.anonymous.get("/metrics")).status_code == 401
        assert (await application.client.get("/metrics")).status_code == 200


async def test_a_setting_opens_it(tmp_path: Path) -> None:
    async with open_application(tmp_path / "data", host="0.0.0.0", metrics_public=True) as application:
        reply: httpx2.Response = await application.anonymous.get("/metrics")
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_open_metrics_has_the_same_numbers_and_examples(application: Application) -> None:
    await application.client.post("/api/v1/agent/prompt", json={"message": "hello"}, headers={"X-Request-ID": "my-own"})
    accept = {"Accept": "application/openmetrics-text; version=1.0.0, text/plain;q=0.5"}
    reply = await application.anonymous.get("/metrics", headers=accept)
    assert reply.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = list(open_parser.text_string_to_metric_families(reply.text))
    assert {family.name for family in families} == {PREFIX + name for name in (*FAMILIES, *GAUGES)}
    examples = [sample.exemplar for family in families for sample in family.samples if sample.exemplar]
    assert [example.labels for example in examples if example.labels["request_id"] == "my-own"]
    old = samples((await application.anonymous.get("/metrics")).text)
    route = frozenset({("route", "POST /api/v1/agent/prompt"), ("status", "2xx")})
    new = {(sample.name, frozenset(sample.labels.items())): sample.value for f in families for sample in f.samples}
    assert new["mnemosine_requests_total", route] == old["mnemosine_requests_total", route] == 1
