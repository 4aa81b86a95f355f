"""Logging for people and for machines: two formatters, one redaction filter, one brake on repeated errors.

Nothing is configured at import. `configure_logging()` is called once by whoever starts the process; the libraries
below us (uvicorn, gunicorn, SQLAlchemy, openai) log through the standard library and so come out in the same shape.
"""

import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO, Literal, cast

LogFormat = Literal["text", "json"]

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that this task serves; the front door sets it, every log line carries it."""

# Libraries that would log URLs, headers, one line a request, or their own set-up.
_QUIET_LOGGERS = ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "anthropic", "aiosqlite", "asyncio", "alembic")
# Libraries that install handlers of their own; they speak through the root handler instead.
_CAPTURED_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "gunicorn.error", "gunicorn.access")

_MASK = "[redacted]"
_MAX_MESSAGE_CHARS = 16_384
_MAX_TRACEBACK_CHARS = 65_536
# A quote before the separator: the same words appear in JSON and in reprs. Every repetition that may fail is bounded,
# so that no text takes more than linear time; a test holds that.
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b([a-z][a-z0-9+.\-]{0,30}://)([^\s/@:]{0,200}):[^\s/]{0,500}@", re.IGNORECASE), rf"\1\2:{_MASK}@"),
    (re.compile(r"\b(bearer|basic)\s+[^\s,;\"']{6,}", re.IGNORECASE), rf"\1 {_MASK}"),
    (re.compile(r"\beyJ[\w-]{6,}(?:\.[\w-]*){0,4}"), _MASK),
    (re.compile(r"\b(sk|pk|rk|xai|gsk|ghp|github_pat|AIza)[-_]?[A-Za-z0-9][\w-]{14,}"), rf"\1-{_MASK}"),
    (re.compile(r"\bsk-[\w-]{4,}"), f"sk-{_MASK}"),
    (re.compile(r"\bmn_[A-Za-z0-9]+_[\w-]{4,}"), f"mn_{_MASK}"),
    (
        re.compile(
            r"((?:password|passwd|secret|api[_-]?key|(?:access|refresh|auth|id)[_-]?token|secret[_-]?key|authorization)"
            r"[\"']?\s{0,4}[:=]\s{0,4})(\"[^\"]*\"|'[^']*'|(?!(?:bearer|basic)\s)[^\s,;&)}\]]+)",
            re.IGNORECASE,
        ),
        rf"\1{_MASK}",
    ),
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def redact(text: str) -> str:
    """`text` with everything that looks like a credential masked; the names around it stay readable."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _one_line(text: str) -> str:
    return _CONTROL.sub(" ", text)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


class RedactionFilter(logging.Filter):
    """Render the record, mask its credentials, and flatten it to one line.

    Sits on the handlers, not on the loggers: a filter on a logger does not see what its children send up.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite `record` in place; never drops one."""
        try:
            message = record.getMessage()
        except Exception:
            message = str(record.msg)
        record.msg = _one_line(redact(_shortened(message, _MAX_MESSAGE_CHARS)))
        record.args = None
        if record.exc_info and not record.exc_text:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        # The live exception would let a formatter print the raw text again.
        record.exc_info = None
        if record.exc_text:
            record.exc_text = redact(_shortened(record.exc_text, _MAX_TRACEBACK_CHARS))
        if record.stack_info:
            record.stack_info = redact(_shortened(record.stack_info, _MAX_TRACEBACK_CHARS))
        for name, value in _extras(record).items():
            setattr(record, name, _clean(value, name=name))
        if not hasattr(record, "request_id"):
            record.request_id = request_id.get()
        return True


class RepetitionFilter(logging.Filter):
    """Let equal warnings and errors through once a second each, and say how many were held back.

    Equal means the same logger, level and message template: a dead dependency that fails each of a thousand
    requests costs one line a second. Remembers at most `max_kinds` templates.
    """

    def __init__(
        self, *, interval_s: float = 1.0, max_kinds: int = 512, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.interval_s = interval_s
        self._max_kinds = max_kinds
        self._clock = clock
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop the record if an equal one passed less than `interval_s` ago."""
        if record.levelno < logging.WARNING:
            return True
        key = (record.name, record.levelno, str(record.msg)[:200])
        now = self._clock()
        last, held_back = self._seen.pop(key, (float("-inf"), 0))
        if now - last < self.interval_s:
            self._seen[key] = (last, held_back + 1)
            return False
        while len(self._seen) >= self._max_kinds:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = (now, 0)
        if held_back:
            record.repeated = held_back
        return True


class TextFormatter(logging.Formatter):
    """One readable line a record: time, level, logger, message, then `name=value` for the rest."""

    _COLOURS = {  # noqa: RUF012 - a constant
        logging.DEBUG: "\033[2m",
        logging.INFO: "\033[36m",
        logging.WARNING: "\033[33m",
        logging.ERROR: "\033[31m",
        logging.CRITICAL: "\033[1;31m",
    }

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Render `record`; a traceback follows on lines of its own."""
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = f"{record.levelname.lower():<8}"
        if self._colour:
            level = f"{self._COLOURS.get(record.levelno, '')}{level}\033[0m"
        parts = [clock, level, f"{record.name}:", record.getMessage()]
        parts += [f"{name}={value}" for name, value in _fields(record).items()]
        text = " ".join(parts)
        for block in (record.exc_text, record.stack_info):
            if block:
                text = f"{text}\n{block}"
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `timestamp` (RFC 3339, UTC), `level`, `logger`, `message`, `request_id`, extras."""

    def format(self, record: logging.LogRecord) -> str:
        """Render `record`; what JSON does not know is rendered by `str()`."""
        entry: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_text:
            entry["exception"] = record.exc_text
        if record.stack_info:
            entry["stack"] = record.stack_info
        return json.dumps(entry, default=str, ensure_ascii=False)


def configure_logging(level: str = "info", format: LogFormat = "text", *, stream: IO[str] | None = None) -> None:  # noqa: A002
    """Send every log line of this process to `stream` (standard error) in one shape.

    Replaces the handlers of the root logger and of the servers; calling it again is safe. Colours only when the
    stream is a terminal and `NO_COLOR` is unset.
    """
    target = stream if stream is not None else sys.stderr
    handler = logging.StreamHandler(target)
    handler.addFilter(RepetitionFilter())
    handler.addFilter(RedactionFilter())
    colour = target.isatty() and not os.environ.get("NO_COLOR")
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter(colour=colour))

    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CAPTURED_LOGGERS:
        captured = logging.getLogger(name)
        captured.handlers.clear()
        captured.propagate = True
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in _extras(record).items() if value is not None}


_SECRET_NAME = re.compile(r"password|passwd|secret|token$|api_?key|authorization|cookie|credential", re.IGNORECASE)


def _clean(value: object, *, name: str = "", depth: int = 0) -> object:
    """`value` with credentials masked, containers included; a secret's name masks the value whatever it looks like."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if name and _SECRET_NAME.search(name):
        return _MASK
    if isinstance(value, str):
        return _one_line(redact(_shortened(value, _MAX_MESSAGE_CHARS)))
    if depth < 4 and isinstance(value, Mapping):
        mapping = cast("Mapping[object, object]", value)
        return {str(key): _clean(item, name=str(key), depth=depth + 1) for key, item in mapping.items()}
    if depth < 4 and isinstance(value, list | tuple | set | frozenset):
        return [_clean(item, depth=depth + 1) for item in cast("list[object]", value)]
    return _one_line(redact(_shortened(str(value), _MAX_MESSAGE_CHARS)))
