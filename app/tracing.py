"""Spans where the operator asked for tracing, and nothing at all otherwise. OpenTelemetry stays in this module.

Tracing is on where `OTEL_EXPORTER_OTLP_ENDPOINT` says where spans go, or where the process has set up OpenTelemetry
itself (Logfire does). All settings are OpenTelemetry's own; `docs/howto/tracing.md` has the useful ones.
"""

import os
import sys
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from app.errors import BadConfiguration

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Span(Protocol):
    """One step of a trace."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Say something about the step; never a prompt, an answer or a credential."""
        ...


class _NoSpan:
    def set_attribute(self, key: str, value: Any) -> None:
        """Nobody listens."""


_NOTHING: AbstractContextManager[Span] = nullcontext(_NoSpan())
_tracer: "Tracer | None" = None
_provider: Any = None


def is_on() -> bool:
    """Whether anybody wants spans."""
    return _tracer is not None


def provider() -> Any:
    """Where the spans go, for libraries that make their own."""
    return _provider


def wants_content() -> bool:
    """Whether the operator wants prompts and answers in spans; the default is no."""
    return os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").lower() == "true"


def span(name: str, **attributes: str | int | float | bool) -> AbstractContextManager[Span]:
    """A step of the present trace, for the length of the block. Dots in attribute names are written `__`."""
    if _tracer is None:
        return _NOTHING
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    return _tracer.start_as_current_span(name, attributes=named)


@contextmanager
def request_span(method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Generator[Span]:
    """The root of one request's trace; part of the caller's own trace where it sent a `traceparent`."""
    if _tracer is None:
        with _NOTHING as nobody:
            yield nobody
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    wanted = (b"traceparent", b"tracestate")
    carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in wanted}
    parent = TraceContextTextMapPropagator().extract(carrier)
    about = {"http.request.method": method, "url.path": path}
    with _tracer.start_as_current_span(method, context=parent, kind=SpanKind.SERVER, attributes=about) as root:
        yield root


def end_request_span(root: Span, route: str, status: int) -> None:
    """Name the root after its route, which is known only when the request has been answered."""
    if _tracer is None:
        return
    from opentelemetry.trace import Span as RealSpan
    from opentelemetry.trace import StatusCode

    assert isinstance(root, RealSpan)
    root.update_name(route)
    root.set_attribute("http.route", route.partition(" ")[2] or route)
    root.set_attribute("http.response.status_code", status)
    if status >= 500:
        root.set_status(StatusCode.ERROR)


@contextmanager
def open_tracing(version: str) -> Generator[None]:
    """Send spans as OpenTelemetry's environment says, for the length of the block; after it the last ones are out.

    A provider that the process has set up itself comes first. Raises `BadConfiguration` where the packages are missing.
    """
    global _tracer, _provider
    found = _provider_of_the_process()
    wanted = any(os.environ.get(name) for name in _ENDPOINTS)
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not (found or wanted):
        yield
        return
    provider = found or _exporting_provider(version)
    _tracer, _provider = provider.get_tracer("mnemosine", version), provider
    try:
        yield
    finally:
        _tracer = _provider = None
        if provider is not found:
            provider.shutdown()


def _provider_of_the_process() -> Any:
    if "opentelemetry.sdk.trace" not in sys.modules:
        return None
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import get_tracer_provider

    found = get_tracer_provider()
    return found if isinstance(found, TracerProvider) else None


def _exporting_provider(version: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as missing:
        raise BadConfiguration(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for tracing, whose packages are not installed; "
            "run: pip install 'mnemosine[monitoring]'"
        ) from missing
    # What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say goes first.
    name = os.environ.get("OTEL_SERVICE_NAME", "mnemosine")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name, SERVICE_VERSION: version}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
