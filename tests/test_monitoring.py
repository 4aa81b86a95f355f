"""What is written for Prometheus names only series that are exported, and every series has its line of reference."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from app.core.exposition import GAUGES, PREFIX, series_name
from app.core.metrics import FAMILIES

ROOT = Path(__file__).parent.parent
EXPORTED = {series_name(name) for name in FAMILIES} | {PREFIX + name for name in GAUGES}


def unknown_series(text: str) -> set[str]:
    named = set(re.findall(r"\bmnemosine_[a-z_]+", text))
    return {
        name for name in named if name not in EXPORTED and re.sub(r"_(bucket|sum|count)$", "", name) not in EXPORTED
    }


def test_alerts_name_only_series_that_exist() -> None:
    rules: Any = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(expressions) >= 5
    assert unknown_series(" ".join(expressions)) == set()


def test_the_dashboard_of_grafana_names_only_series_that_exist() -> None:
    dashboard: Any = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) >= 25
    assert unknown_series(" ".join(expressions)) == set()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_an_unknown_series_would_be_found() -> None:
    assert unknown_series("rate(mnemosine_nonsense_total[5m])") == {"mnemosine_nonsense_total"}


def test_every_series_is_in_the_reference_and_nothing_else() -> None:
    listed = set(re.findall(r"\| `(mnemosine_[a-z_]+)`", (ROOT / "docs" / "reference" / "metrics.md").read_text()))
    assert listed == EXPORTED
