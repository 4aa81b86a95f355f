"""Look up every pin of constraints.txt among the known vulnerabilities: audit.py PIP_AUDIT.

A scanner that could look nothing up says "no known vulnerabilities" and exits 0. So a version that is known to be bad
is looked up first and has to be found, and a package that was skipped is a failure.
"""

# ruff: noqa: S603 - a command whose arguments are constants

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KNOWN_BAD = "jinja2==2.4.1"
"""Of 2010; CVE-2014-0012, CVE-2016-10745, CVE-2019-8341 and others."""


def faults_of(control: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """Why the audit fails, a line each, from what pip-audit says of the control and of our pins as JSON."""
    if not any(package.get("vulns") for package in control.get("dependencies", ())):
        return [f"the control {KNOWN_BAD} was not found to be vulnerable: the advisories cannot be reached"]
    faults: list[str] = []
    for package in report.get("dependencies", ()):
        if "skip_reason" in package:
            faults.append(f"{package['name']} was skipped: {package['skip_reason']}")
        for found in package.get("vulns", ()):
            versions = ", ".join(found.get("fix_versions", ())) or "no version yet"
            faults.append(f"{package['name']} {package['version']}: {found['id']}, repaired in {versions}")
    return faults or ([] if report.get("dependencies") else ["nothing was audited"])


def _look_up(pip_audit: str, pins: Path) -> dict[str, Any]:
    command = [
        pip_audit,
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--disable-pip",
        "--no-deps",
        "-r",
        str(pins),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.stdout.strip() else {}


def main() -> int:
    """Print the faults; 1 where there are any."""
    pip_audit = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        bad = Path(folder) / "bad.txt"
        bad.write_text(KNOWN_BAD + "\n")
        control = _look_up(pip_audit, bad)
    faults = faults_of(control, _look_up(pip_audit, Path(__file__).parent.parent / "constraints.txt"))
    sys.stdout.write("\n".join(faults or ["no known vulnerability, nothing skipped, and the control was found"]) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
