"""The Prometheus text format, written from the same snapshot that the performance API reports."""

from collections.abc import Mapping
from math import inf

from app.core.metrics import FAMILIES, Distribution, Key, Snapshot

PREFIX = "mnemosine_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Upper bounds of the exported buckets. A value within 0.5 % of a bound may be counted on its other side."""

GAUGES: dict[str, str] = {
    "workers": "Workers that were counted.",
    "uptime_seconds": "Seconds since the start.",
    "requests_in_flight": "Requests that are being answered.",
    "process_resident_bytes": "Memory of the serving process.",
    "process_open_files": "Open files of the serving process.",
    "system_cpu_percent": "CPU of the machine in use.",
    "system_memory_percent": "Memory of the machine in use.",
    "system_disk_percent": "Disk of the data directory in use.",
    "database_connections": "Connections that the pool keeps.",
    "database_connections_checked_out": "Connections in use.",
    "database_connections_overflow": "Connections beyond the pool's size.",
    "agent_pool_size": "Live agents.",
    "agent_pool_in_use": "Live agents that are in use.",
}
"""Levels of this moment. Names stay as they are, like those of `FAMILIES`."""


def series_name(family: str) -> str:
    """The name that Prometheus shows: counters end in `_total`."""
    return f"{PREFIX}{family}_total" if FAMILIES[family].kind == "counter" else PREFIX + family


def render(snapshot: Snapshot, gauges: Mapping[str, float]) -> str:
    """All counters, histograms and `gauges` (named as in `GAUGES`), one line each."""
    lines: list[str] = []
    for family in FAMILIES.values():
        name = series_name(family.name)
        lines += (f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}")
        if family.kind == "counter":
            for key, value in snapshot.counts.items():
                if key[0] == family.name:
                    lines.append(f"{name}{_labels(key)} {value!r}")
        else:
            for key, held in snapshot.distributions.items():
                if key[0] == family.name:
                    lines += _histogram(name, key, held)
    for gauge, value in gauges.items():
        lines += (
            f"# HELP {PREFIX}{gauge} {GAUGES[gauge]}",
            f"# TYPE {PREFIX}{gauge} gauge",
            f"{PREFIX}{gauge} {value!r}",
        )
    return "\n".join([*lines, ""])


def _histogram(name: str, key: Key, held: Distribution) -> list[str]:
    lines = [
        f"{name}_bucket{_labels(key, le='+Inf' if bound == inf else f'{bound:g}')} {count}"
        for bound, count in held.up_to((*BOUNDS_S, inf))
    ]
    return [*lines, f"{name}_sum{_labels(key)} {held.total!r}", f"{name}_count{_labels(key)} {held.count}"]


def _labels(key: Key, **more: str) -> str:
    pairs = [*zip(FAMILIES[key[0]].labels, key[1:], strict=True), *more.items()]
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
