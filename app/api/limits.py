"""Rate limits at the door: a request counted, and what is left of its limits as headers."""

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


def limit_headers(allowance: Allowance) -> list[tuple[bytes, bytes]]:
    """`x-ratelimit-…` in OpenAI's words: limit, remaining, and the time until the limit is as if never used."""
    headers: list[tuple[bytes, bytes]] = []
    if allowance.requests is not None:
        headers += _headers(b"requests", allowance.requests)
    if allowance.tokens is not None:
        headers += _headers(b"tokens", allowance.tokens)
    return headers


def _headers(what: bytes, meter: Meter) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-ratelimit-limit-" + what, b"%d" % meter.limit),
        (b"x-ratelimit-remaining-" + what, b"%d" % meter.remaining),
        (b"x-ratelimit-reset-" + what, _span(meter.reset_s)),
    ]


def _span(seconds: float) -> bytes:
    """`340ms`, `12s`, `6m0s`: how OpenAI writes a duration."""
    if seconds < 1:
        return b"%dms" % ceil(seconds * 1000)
    minutes, rest = divmod(ceil(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
