"""The Prometheus text format, written from the same snapshot that the performance API reports."""

from collections.abc import Mapping
from math import inf
from typing import Literal, TypeVar

from app.core.metrics import BOUNDS_S, FAMILIES, Distribution, Example, Key, Snapshot

PREFIX = "mnemosine_"

T = TypeVar("T")

GAUGES: dict[str, str] = {
    "workers": "Workers that were counted.",
    "replicas": "Machines (or data directories) that were counted.",
    "uptime_seconds": "Seconds since the start.",
    "requests_in_flight": "Requests that are being answered.",
    "process_resident_bytes": "Memory of all workers; pages that they share count several times.",
    "process_open_files": "Open files of all workers.",
    "system_cpu_percent": "CPU of the machine in use.",
    "system_memory_percent": "Memory of the machine in use.",
    "system_disk_percent": "Disk of the data directory in use.",
    "database_connections": "Connections that the pools keep.",
    "database_connections_checked_out": "Connections in use.",
    "database_connections_overflow": "Connections beyond the size of the pools.",
    "agent_pool_capacity": "Live agents that may be kept.",
    "agent_pool_size": "Live agents.",
    "agent_pool_in_use": "Live agents that are in use.",
    "slots_in_use": "Runs that hold a slot.",
    "cache_entries": "Answers in memory.",
    "cache_bytes": "Bytes of these.",
    "cache_max_bytes": "Bytes that they may have.",
}
"""Levels of this moment, summed over workers. Names stay as they are, like those of `FAMILIES`."""

Kind = Literal["prometheus", "openmetrics"]
CONTENT_TYPES: dict[Kind, str] = {
    "prometheus": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}


def series_name(family: str) -> str:
    """The name that Prometheus shows: counters end in `_total`."""
    return f"{PREFIX}{family}_total" if FAMILIES[family].kind == "counter" else PREFIX + family


def kind_for(accept: str) -> Kind:
    """The format that the `Accept` header asks for."""
    return "openmetrics" if "application/openmetrics-text" in accept else "prometheus"


def render(
    snapshot: Snapshot,
    gauges: Mapping[str, float],
    *,
    kind: Kind = "prometheus",
    examples: Mapping[str, Mapping[int, Example]] | None = None,
) -> str:
    """All counters, histograms and `gauges` (named as in `GAUGES`), one line each.

    OpenMetrics has an example of each bucket of `response_seconds` beside it, where there are `examples`.
    """
    openly = kind == "openmetrics"
    known: Mapping[str, Mapping[int, Example]] = (examples or {}) if openly else {}
    counters, histograms = _by_family(snapshot.counts), _by_family(snapshot.distributions)
    lines: list[str] = []
    for family in FAMILIES.values():
        name = series_name(family.name)
        # OpenMetrics names the family, the older format the series.
        title = PREFIX + family.name if openly else name
        lines += (f"# HELP {title} {family.help}", f"# TYPE {title} {family.kind}")
        for key, value in counters.get(family.name, ()):
            lines.append(f"{name}{_labels(key)} {value!r}")
        for key, held in histograms.get(family.name, ()):
            lines += _histogram(name, key, held, known.get(key[1]) if family.name == "response_seconds" else None)
    for gauge, value in gauges.items():
        lines += (
            f"# HELP {PREFIX}{gauge} {GAUGES[gauge]}",
            f"# TYPE {PREFIX}{gauge} gauge",
            f"{PREFIX}{gauge} {value!r}",
        )
    return "\n".join([*lines, "# EOF", ""] if openly else [*lines, ""])


def _by_family(series: Mapping[Key, T]) -> dict[str, list[tuple[Key, T]]]:
    found: dict[str, list[tuple[Key, T]]] = {}
    for key, value in series.items():
        found.setdefault(key[0], []).append((key, value))
    return found


def _histogram(name: str, key: Key, held: Distribution, examples: Mapping[int, Example] | None) -> list[str]:
    lines: list[str] = []
    for place, (bound, count) in enumerate(held.up_to((*BOUNDS_S, inf))):
        le = "+Inf" if bound == inf else f"{float(bound)!r}"
        lines.append(f"{name}_bucket{_labels(key, le=le)} {count}{_example(examples.get(place)) if examples else ''}")
    return [*lines, f"{name}_sum{_labels(key)} {held.total!r}", f"{name}_count{_labels(key)} {held.count}"]


def _example(example: Example | None) -> str:
    # OpenMetrics allows 128 characters, the name of the label included.
    if example is None or len(example[0]) > 64:
        return ""
    request_id, seconds, at = example
    return f' # {{request_id="{_escaped(request_id)}"}} {seconds!r} {at:.3f}'


def _labels(key: Key, **more: str) -> str:
    pairs = [*zip(FAMILIES[key[0]].labels, key[1:], strict=True), *more.items()]
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
