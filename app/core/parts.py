"""How what the rooms say of themselves adds up: which numbers grow, which are levels, which are lists."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, cast

from app.core.metrics import Distribution, Key, Snapshot

PartName = Literal["agent_pool", "cache"]
Part = Mapping[str, Any]
"""What one room of one worker says, in the contract's words."""

# Grows as long as a worker lives, so it is counted like everything else and outlives the worker.
_GROWING: dict[PartName, dict[str, Key]] = {
    "cache": {
        "hits": ("cache_lookups", "hit"),
        "misses": ("cache_lookups", "miss"),
        "coalesced": ("cache_lookups", "coalesced"),
        "stores": ("cache_stores",),
        "evictions": ("cache_evictions",),
        "expirations": ("cache_expirations",),
        "cleanup.runs": ("cache_cleanups",),
        "cleanup.removed": ("cache_cleaned",),
        "saved.requests": ("cache_saved_requests",),
        "saved.input_tokens": ("cache_saved_tokens", "input"),
        "saved.output_tokens": ("cache_saved_tokens", "output"),
        "saved.cost_usd": ("cache_saved_cost_usd",),
        "saved.seconds": ("cache_saved_seconds",),
    },
    "agent_pool": {
        "hits": ("agent_pool_leases", "hit"),
        "misses": ("agent_pool_leases", "miss"),
        "evictions": ("agent_pool_evictions",),
        "idle_closings": ("agent_pool_idle_closings",),
    },
}
# Is so much right now: the server has what its workers have together, bounds included.
_LEVELS: dict[PartName, tuple[str, ...]] = {
    "cache": ("entries", "bytes", "max_bytes"),
    "agent_pool": ("capacity", "size", "in_use"),
}
_SEVERITIES = ("info", "warning", "critical")


def growing(parts: Mapping[str, Part]) -> dict[Key, float]:
    """The numbers in `parts` that only grow, as counters."""
    found: dict[Key, float] = {}
    for name, paths in _GROWING.items():
        part = parts.get(name) or {}
        for path, key in paths.items():
            value = _at(part, path)
            if value is not None:
                found[key] = float(value)
    return found


def merged(name: PartName, parts: Iterable[Part], total: Snapshot) -> dict[str, Any]:
    """The part of the whole server: `parts` are those of its workers, one's own first; `total` is what all counted.

    Settings are one's own. Empty parts are of workers that are still starting.
    """
    told = [part for part in parts if part]
    if not told:
        return {}
    whole = _copied(told[0])
    for path, key in _GROWING[name].items():
        if _at(whole, path) is not None:
            _put(whole, path, _as_told(_at(whole, path), total.counts.get(key, 0)))
    for level in _LEVELS[name]:
        if level in whole:
            whole[level] = sum(part.get(level, 0) for part in told)
    asked = sum(value for key, value in total.counts.items() if key[0] == _LOOKUPS[name])
    missed = total.counts.get((_LOOKUPS[name], "miss"), 0)
    whole["hit_ratio"] = round((asked - missed) / asked, 4) if asked else 0.0
    whole["recommendations"] = _recommendations(told)
    if name == "cache":
        _merge_cleanup(whole, told)
        _merge_saved(whole, told)
    else:
        whole["agents"] = [agent for part in told for agent in part.get("agents", ())]
        whole["creation_ms"] = milliseconds(total.distribution("agent_creation_seconds"))
        whole["slots"] = _slots(told, total)
    return whole


_LOOKUPS: dict[PartName, str] = {"cache": "cache_lookups", "agent_pool": "agent_pool_leases"}


def milliseconds(seconds: Distribution) -> dict[str, float]:
    """A distribution of seconds in the contract's words."""
    return {
        "count": seconds.count,
        "mean": seconds.mean * 1000,
        "p50": seconds.percentile(0.5) * 1000,
        "p95": seconds.percentile(0.95) * 1000,
        "p99": seconds.percentile(0.99) * 1000,
        "max": seconds.largest * 1000,
    }


def _copied(part: Part) -> dict[str, Any]:
    copy: dict[str, Any] = {}
    for name, value in part.items():
        copy[name] = dict(cast("Part", value)) if isinstance(value, Mapping) else value
    return copy


def _at(part: Part, path: str) -> Any:
    value: Any = part
    for step in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = cast("Part", value).get(step)
    return value


def _put(part: dict[str, Any], path: str, value: Any) -> None:
    *steps, last = path.split(".")
    for step in steps:
        part = part[step]
    part[last] = value


def _as_told(example: Any, value: float) -> float:
    return int(value) if isinstance(example, int) else value


def _recommendations(parts: list[Part]) -> list[dict[str, Any]]:
    """Each advice once: of the worker that finds it most urgent, or would go furthest."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for part in parts:
        for advice in part.get("recommendations", ()):
            place = (advice["code"], advice["setting"])
            known = found.get(place)
            if known is None or _urgency(advice) > _urgency(known):
                found[place] = dict(advice)
    return sorted(found.values(), key=_urgency, reverse=True)


def _urgency(advice: Mapping[str, Any]) -> tuple[int, float]:
    suggested = advice.get("suggested")
    return _SEVERITIES.index(advice["severity"]), suggested if isinstance(suggested, int | float) else 0.0


def _merge_cleanup(whole: dict[str, Any], parts: list[Part]) -> None:
    # Whichever worker cleaned up last says when and how long.
    last = max(parts, key=lambda part: _moment(_at(part, "cleanup.last_run_at")))
    for name in ("last_run_at", "last_duration_ms"):
        if (value := _at(last, f"cleanup.{name}")) is not None:
            whole["cleanup"][name] = value


def _moment(value: datetime | str | None) -> float:
    if value is None:
        return 0.0
    return (datetime.fromisoformat(value) if isinstance(value, str) else value).timestamp()


def _merge_saved(whole: dict[str, Any], parts: list[Part]) -> None:
    if not any("saved_by_agent" in part for part in parts):
        return
    agents: dict[str, dict[str, float]] = {}
    for part in parts:
        for agent, saved in part.get("saved_by_agent", {}).items():
            into = agents.setdefault(agent, {})
            for key, value in saved.items():
                into[key] = into.get(key, 0) + value
    whole["saved_by_agent"] = agents


def _slots(parts: list[Part], total: Snapshot) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for slot in part.get("slots", ()):
            known = found.get(slot["name"])
            if known is None:
                known = found[slot["name"]] = {**slot, "limit": 0, "in_use": 0}
            known["limit"] += slot["limit"]
            known["in_use"] += slot["in_use"]
    for name, slot in found.items():
        slot["refused"] = int(total.count("slot_refusals", slot=name))
        slot["wait_ms"] = milliseconds(total.distribution("slot_wait_seconds", slot=name))
    return list(found.values())
