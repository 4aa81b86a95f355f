"""How the cache takes part in an answer, in the words of HTTP: the same on every route that answers."""

from app.core.run import CacheMode, CacheState


def cache_headers(state: CacheState, *, age_s: float = 0.0, ttl_s: float | None = None) -> dict[str, str]:
    """Our word for it, and those of RFC 9211."""
    ttl = None if ttl_s is None else f"ttl={max(0, int(ttl_s))}"
    match state:
        case "HIT":
            status = ["hit", ttl]
        case "COALESCED":
            status = ["fwd=miss", "collapsed", ttl]
        case "MISS":
            status = ["fwd=miss", ttl and "stored", ttl]
        case "REFRESH":
            status = ["fwd=request", ttl and "stored", ttl]
        case "BYPASS":
            status = ["fwd=bypass"]
    headers = {"X-Cache": state, "Cache-Status": "; ".join(["mnemosine", *(part for part in status if part)])}
    if state == "HIT":
        headers["Age"] = str(int(age_s))
    return headers


def cache_mode(asked: CacheMode, cache_control: str) -> CacheMode:
    """What the body and the request's `Cache-Control` ask for together; the stricter of both wins."""
    if not cache_control:
        return asked
    directives = {part.strip().lower() for part in cache_control.split(",")}
    if "no-store" in directives or asked == "off":
        return "off"
    return "refresh" if "no-cache" in directives else asked
