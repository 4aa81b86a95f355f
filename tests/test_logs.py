"""Logs: two shapes, one line a record, no secret whichever way it comes, and a brake on repetition."""

import io
import json
import logging
import time
from collections.abc import Iterator

import pytest

from app.logs import JsonFormatter, RepetitionFilter, configure_logging, redact, request_id

CANARIES = {
    "sk-proj-canary0123456789abcdef": "openai",
    "mn_ab12cd34_canary0123456789": "api key",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.canary-signature_": "jwt",
    "Bearer canary-opaque-token-0123": "bearer",
    "password=canary-hunter2": "password",
    '"api_key": "canary-json-value"': "json",
    "postgresql+asyncpg://user:canary-pw@db.example/x": "dsn",
    "redis://:canary-pw@cache.example/0": "redis",
    "Authorization: Basic canarydXNlcjpwYXNz": "basic",
    "{'client_secret': 'canary secret with spaces'}": "repr",
}


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def json_log(root_logger: logging.Logger) -> io.StringIO:
    stream = io.StringIO()
    configure_logging("debug", "json", stream=stream)
    return stream


def entries(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_time_level_logger_message_request_and_extras(json_log: io.StringIO) -> None:
    token = request_id.set("req-1")
    try:
        logging.getLogger("app.test").info("answered %s", "it", extra={"duration_ms": 1.5, "agent": "default"})
    finally:
        request_id.reset(token)
    (entry,) = entries(json_log)
    assert entry.pop("timestamp", "").__class__ is str
    assert entry == {
        "level": "info",
        "logger": "app.test",
        "message": "answered it",
        "request_id": "req-1",
        "duration_ms": 1.5,
        "agent": "default",
    }


def test_a_timestamp_is_rfc_3339_in_utc() -> None:
    record = logging.makeLogRecord({"created": 1_700_000_000.25, "msg": "x"})
    assert json.loads(JsonFormatter().format(record))["timestamp"] == "2023-11-14T22:13:20.250Z"


@pytest.mark.parametrize("secret", CANARIES, ids=CANARIES.values())
@pytest.mark.parametrize("shape", ["json", "text"])
def test_no_secret_passes_by_message_argument_extra_or_exception(
    root_logger: logging.Logger, secret: str, shape: str
) -> None:
    stream = io.StringIO()
    configure_logging("debug", "json" if shape == "json" else "text", stream=stream)
    log = logging.getLogger("some.library")
    log.info("a " + secret)
    log.info("b %s", secret)
    log.info("c %(x)s", {"x": secret})
    log.info("d", extra={"note": secret, "nested": {"deep": [secret]}})
    try:
        try:
            raise ValueError(secret)
        except ValueError as error:
            raise RuntimeError("outer " + secret) from error
    except RuntimeError:
        log.exception("e")
    log.info("f", stack_info=True)
    assert "canary" not in stream.getvalue()
    assert stream.getvalue().count("[redacted]") >= 6


def test_a_secret_name_masks_any_value(json_log: io.StringIO) -> None:
    logging.getLogger("x").info("x", extra={"api_key": "canary", "headers": {"Authorization": "canary", "n": 1}})
    (entry,) = entries(json_log)
    assert entry["api_key"] == "[redacted]"
    assert entry["headers"] == {"Authorization": "[redacted]", "n": 1}


@pytest.mark.parametrize(
    "harmless",
    [
        "GET /api/v1/agent/prompt 200 in 12.3 ms",
        "http://127.0.0.1:8000/docs",
        "input_tokens=12 output_tokens=9",
        "task-123 mnemosine.db skipped; the token bucket of alice is empty",
    ],
)
def test_harmless_text_stays(harmless: str) -> None:
    assert redact(harmless) == harmless


@pytest.mark.parametrize(
    "unit",
    ["a", "a-", "a://", "a://b:", "password", "password ", 'password="', "sk-", "mn_", "mn_a_", "eyJ", "eyJaaaaaa.",
     "bearer ", "Bearer a", "api_key:", "=", " ", "_", "-", "'", "authorization: "],
)  # fmt: skip
def test_no_text_makes_redaction_slow(unit: str) -> None:
    def duration(length: int) -> float:
        text = unit * (length // len(unit))
        began = time.process_time()
        redact(text)
        return time.process_time() - began

    assert min(duration(50_000) for _ in range(3)) < 0.5


def test_a_huge_message_is_shortened(json_log: io.StringIO) -> None:
    logging.getLogger("x").info("a" * 1_000_000)
    assert len(json_log.getvalue()) < 20_000
    assert "more characters" in json_log.getvalue()


def test_a_message_cannot_forge_a_line(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream=stream)
    logging.getLogger("x").info("user %s", "eve\r\n12:00:00 INFO  x: all is well\u2028more\x1b[2J", extra={"a": "b\nc"})
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_a_bad_format_string_loses_nothing(json_log: io.StringIO) -> None:
    logging.getLogger("x").info("%d items", "password=canary")
    assert entries(json_log)[0]["message"] == "%d items"


def test_colours_only_on_a_terminal_without_no_color(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def line(stream: io.StringIO) -> str:
        configure_logging("info", "text", stream=stream)
        logging.getLogger("x").warning("hello")
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[33m" in line(Terminal())
    assert "\033" not in line(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in line(Terminal())


def test_equal_errors_pass_once_a_second_with_a_count() -> None:
    now = 0.0
    brake = RepetitionFilter(clock=lambda: now)

    def error(template: str = "redis is away: %s") -> logging.LogRecord:
        return logging.LogRecord("stores", logging.ERROR, "f", 1, template, ("x",), None)

    assert brake.filter(error())
    assert not any(brake.filter(error()) for _ in range(99))
    assert brake.filter(error("another"))
    now = 1.5
    record = error()
    assert brake.filter(record)
    assert vars(record)["repeated"] == 99


def test_repetition_memory_is_bounded_and_info_is_never_held_back() -> None:
    brake = RepetitionFilter(max_kinds=8)
    for number in range(1000):
        brake.filter(logging.LogRecord("x", logging.ERROR, "f", 1, f"error {number}", (), None))
    assert len(vars(brake)["_seen"]) <= 8
    info = logging.LogRecord("x", logging.INFO, "f", 1, "same", (), None)
    assert all(brake.filter(info) for _ in range(10))


def test_server_loggers_speak_through_the_root_and_http_clients_are_quiet(json_log: io.StringIO) -> None:
    logging.getLogger("httpx").info("HTTP Request: GET https://example.org/?key=1")
    logging.getLogger("openai").debug("options")
    logging.getLogger("uvicorn.error").info("started")
    assert [entry["message"] for entry in entries(json_log)] == ["started"]
