"""Rate limits at the door: a request counted, and what is left of its limits as lines of headers."""

from math import ceil

from app.api.visit import Visit
from app.core.rate_limiter import Allowance, Group, Meter, RateLimiter
from app.core.run import Caller


async def admit(limiter: RateLimiter, visit: Visit, caller: Caller, group: Group) -> None:
    """Count this request of `caller`. Raises `LimitExceeded`; the headers go out either way."""
    visit.story.caller_id = caller.id
    allowance = visit.allowance = await limiter.admit(caller, group)
    if allowance is not None and not allowance.allowed:
        raise allowance.refusal()


def limit_lines(allowance: Allowance) -> bytes:
    """`x-ratelimit-…` in OpenAI's words: limit, remaining, and the time until the limit is as if never used."""
    lines = b""
    if allowance.requests is not None:
        lines += _lines(b"requests", allowance.requests)
    if allowance.tokens is not None:
        lines += _lines(b"tokens", allowance.tokens)
    return lines


def _lines(what: bytes, meter: Meter) -> bytes:
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n" % (
        what,
        meter.limit,
        what,
        meter.remaining,
        what,
        _span(meter.reset_s),
    )


def _span(seconds: float) -> bytes:
    """`340ms`, `12s`, `6m0s`: how OpenAI writes a duration."""
    if seconds < 1:
        return b"%dms" % ceil(seconds * 1000)
    minutes, rest = divmod(ceil(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
