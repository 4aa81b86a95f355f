"""What is in `deploy/`, as far as it can be checked without a container engine: it agrees with the code and itself.

`deploy/nginx.conf` is run by tests/replicas/test_balanced.py.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config import Settings
from app.core.exposition import GAUGES, PREFIX, series_name
from app.core.metrics import FAMILIES

DEPLOY = Path(__file__).parent.parent / "deploy"
COMPOSE: Any = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MANIFESTS: dict[str, Any] = {
    each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes" / "mnemosine.yaml").read_text())
}
SETTINGS = {name.upper() for name in Settings.model_fields}
# Of providers and of the PostgreSQL image.
FOREIGN = {"OPENAI_API_KEY", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "PATH"}
SECRET = re.compile(r"(KEY|PASSWORD)$")
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".json")


def unknown_settings(text: str) -> set[str]:
    """The words that look like settings and are none."""
    ours = {name.split("_")[0] for name in SETTINGS}
    named = set(re.findall(r"\b[A-Z][A-Z]+(?:_[A-Z]+)+\b", text))
    return {name for name in named if name not in SETTINGS | FOREIGN and name.split("_")[0] in ours}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    assert unknown_settings(path.read_text()) == set()


def test_an_unknown_setting_would_be_found() -> None:
    assert unknown_settings("KEEP_ALIVE_SECONDS KEEP_ALIVE_MINUTES") == {"KEEP_ALIVE_MINUTES"}


def environments() -> list[dict[str, str]]:
    docker = re.findall(r"^(?:ENV|   ) ([A-Z_]+)=([^\s\\]+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    services = [service.get("environment", {}) for service in COMPOSE["services"].values()]
    return [dict(docker), *services, MANIFESTS["ConfigMap"]["data"]]


def test_what_is_set_is_a_setting_with_a_value_that_it_takes() -> None:
    assert len(environments()) == 7
    for environment in environments():
        assert environment.keys() <= SETTINGS | FOREIGN
        plain = {
            name.lower(): value
            for name, value in environment.items()
            if name in SETTINGS and "${" not in value and name != "TRUSTED_PROXIES"
        }
        Settings.model_validate(plain)


def test_no_secret_is_in_a_file() -> None:
    for environment in environments():
        for name, value in environment.items():
            assert not SECRET.search(name) or value.startswith("${"), name
    assert "Secret" not in MANIFESTS
    assert all("://mnemosine:$" in line for line in _lines("postgresql://mnemosine"))


def _lines(part: str) -> list[str]:
    return [line for path in FILES for line in path.read_text().splitlines() if part in line]


def test_ports_and_paths_agree() -> None:
    docker = (DEPLOY / "Dockerfile").read_text()
    assert "EXPOSE 8000" in docker
    assert "127.0.0.1:8000/readyz" in docker
    assert re.search(r"^USER 10001$", docker, re.MULTILINE)
    for name in ("nginx.conf", "Caddyfile"):
        assert set(re.findall(r"(replica-\d):8000", (DEPLOY / name).read_text())) == {"replica-1", "replica-2"}
    assert {"replica-1", "replica-2"} <= COMPOSE["services"].keys()
    assert COMPOSE["services"]["nginx"]["ports"] == ["127.0.0.1:8080:8080"]
    assert "listen 8080;" in (DEPLOY / "nginx.conf").read_text()
    (container,) = MANIFESTS["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    for line in _lines("COPY "):
        for source in line.split()[1:-1]:
            assert source.startswith(("--from", "/opt")) or (DEPLOY.parent / source).exists(), source


def test_times_fit_into_each_other() -> None:
    nginx, unit = (DEPLOY / "nginx.conf").read_text(), (DEPLOY / "mnemosine.service").read_text()
    model = Settings.model_fields["model_timeout_seconds"].default
    assert int(_found(r"proxy_read_timeout (\d+)s", nginx)) > model
    assert int(_found(r"response_header_timeout (\d+)s", (DEPLOY / "Caddyfile").read_text())) > model
    replica = COMPOSE["services"]["replica-1"]
    grace = int(replica["environment"]["GRACEFUL_TIMEOUT_SECONDS"])
    assert int(replica["stop_grace_period"].removesuffix("s")) > grace + 5
    assert int(_found(r"TimeoutStopSec=(\d+)", unit)) > Settings.model_fields["graceful_timeout_seconds"].default + 5
    pod = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
    settings = MANIFESTS["ConfigMap"]["data"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + int(settings["GRACEFUL_TIMEOUT_SECONDS"]) + 5
    for keep_alive in (replica["environment"]["KEEP_ALIVE_SECONDS"], settings["KEEP_ALIVE_SECONDS"]):
        assert int(_found(r"keepalive_timeout (\d+)s", nginx)) < int(keep_alive)


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, pattern
    return found[1]


def test_autoscaling_watches_what_is_exported_and_selectors_match() -> None:
    exported = {series_name(name) for name in FAMILIES} | {PREFIX + name for name in GAUGES}
    scaler = MANIFESTS["HorizontalPodAutoscaler"]["spec"]
    named = {each["pods"]["metric"]["name"] for each in scaler["metrics"] if each["type"] == "Pods"}
    assert named
    assert named <= exported
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert scaler["scaleTargetRef"]["name"] == MANIFESTS["Deployment"]["metadata"]["name"]


def test_connections_of_all_replicas_fit_into_postgresql() -> None:
    settings, most = MANIFESTS["ConfigMap"]["data"], MANIFESTS["HorizontalPodAutoscaler"]["spec"]["maxReplicas"]
    each = int(settings["DB_POOL_SIZE"]) + int(settings["DB_MAX_OVERFLOW"])
    replicas = COMPOSE["services"]["replica-1"]["environment"]
    assert 2 * int(replicas["WORKERS"]) * (int(replicas["DB_POOL_SIZE"]) + int(replicas["DB_MAX_OVERFLOW"])) <= 97
    # More than fit into PostgreSQL's default of 100: docs/scaling.md says what to set.
    assert most * int(settings["WORKERS"]) * each <= 197


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    program = tmp_path / "mnemosine"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "mnemosine.service"
    text = (DEPLOY / "mnemosine.service").read_text()
    unit.write_text(text.replace("/opt/mnemosine/bin/mnemosine", str(program)))
    complaints = _complaints(unit)
    assert complaints == []
    unit.write_text(unit.read_text().replace("RestartSec=1", "RestartSecs=1"))
    assert _complaints(unit), "the control: a misspelt key is found"


def _complaints(unit: Path) -> list[str]:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=60
    )
    return [line for line in done.stderr.splitlines() if "mnemosine.service:" in line]
