"""Traces: one of each prompt, from HTTP to the model; the caller's own goes on; nothing is said in them."""

from collections.abc import Iterator
from pathlib import Path

import opentelemetry.trace
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once

from app import tracing
from tests.application import open_application


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """A process that has set up OpenTelemetry itself."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    yield exporter
    provider.shutdown()


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Of the trace, and of the span in it."""
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def trace_of(exporter: InMemorySpanExporter, route: str) -> dict[str, ReadableSpan]:
    """The spans of the trace whose root is this route, by name."""
    spans = exporter.get_finished_spans()
    (root,) = [span for span in spans if span.name == route]
    return {span.name: span for span in spans if ids(span)[0] == ids(root)[0]}


async def test_one_trace_from_http_through_cache_and_pool_to_model_and_database(
    exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    async with open_application(tmp_path / "data") as application:
        # A credential that was not seen before is looked up in the database.
        key = (await application.client.post("/api/v1/auth/api-keys", json={"name": "test"})).json()["key"]
        exporter.clear()
        headers = {"Authorization": f"Bearer {key}", "X-Request-ID": "my-own"}
        asked = {"message": "a secret question"}
        assert (
            await application.anonymous.post("/api/v1/agent/prompt", json=asked, headers=headers)
        ).status_code == 200
        trace = trace_of(exporter, "POST /api/v1/agent/prompt")
        written = "".join(span.to_json() for span in exporter.get_finished_spans())
    root = trace["POST /api/v1/agent/prompt"]
    assert attributes(root)["http.response.status_code"] == 200
    assert attributes(root)["mnemosine.request_id"] == "my-own"
    assert trace.keys() >= {"mnemosine.database.read", "mnemosine.cache", "mnemosine.agent_pool", "chat offline"}
    assert attributes(trace["mnemosine.cache"])["mnemosine.cache.state"] == "MISS"
    by_id = {ids(span)[1]: span for span in trace.values()}
    ancestors: list[str] = []
    span = trace["chat offline"]
    while span.parent is not None:
        span = by_id[f"{span.parent.span_id:016x}"]
        ancestors.append(span.name)
    assert ancestors[-2:] == ["mnemosine.cache", "POST /api/v1/agent/prompt"]
    assert "a secret question" not in written
    assert key not in written


async def test_a_stream_has_a_span_for_the_cache_too(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    async with open_application(tmp_path / "data") as application:
        states: list[object] = []
        for _ in range(2):
            exporter.clear()
            assert "event: done" in (await application.prompt("said in pieces", stream=True)).text
            trace = trace_of(exporter, "POST /api/v1/agent/prompt")
            states += [attributes(trace["mnemosine.cache"])["mnemosine.cache.state"]]
    assert states == ["MISS", "HIT"]


async def test_the_trace_of_the_caller_goes_on(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    async with open_application(tmp_path / "data") as application:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await application.client.get("/livez", headers={"traceparent": parent})
        (root,) = [span for span in exporter.get_finished_spans() if span.name == "GET /livez"]
    assert ids(root)[0] == "0af7651916cd43dd8448eb211c80319c"
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == "b7ad6b7169203331"


async def test_a_failure_is_marked(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    async with open_application(tmp_path / "data") as application:
        await application.client.get("/nothing/here")
        assert [span.name for span in exporter.get_finished_spans()][-1] == "unmatched"


async def test_it_is_off_unless_somebody_asks(tmp_path: Path) -> None:
    async with open_application(tmp_path / "data"):
        assert not tracing.is_on()
        with tracing.span("nothing") as one, tracing.span("nothing") as two:
            assert one is two


async def test_the_standard_variables_say_where_spans_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_EXPORT_TIMEOUT", "200")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    with tracing.open_tracing("0"):
        assert tracing.is_on()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with tracing.open_tracing("0"):
        assert not tracing.is_on()
