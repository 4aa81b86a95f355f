"""The bill of materials of this environment as CycloneDX 1.6 JSON, from what the installed packages say of themselves.

`python .ci/bill.py` prints it; `python .ci/bill.py licences` prints a line for each package instead.
"""

import json
import re
import sys
from importlib.metadata import Distribution, distributions


def licence_of(package: Distribution) -> str:
    """What the package says: an SPDX expression where it has one, else its classifier, else its own words."""
    said = package.metadata
    if expression := said.get("License-Expression"):
        return expression
    trove = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier") or () if line.startswith("License ::")]
    named = [name for name in trove if name != "OSI Approved"]
    return " AND ".join(named) or (said.get("License") or "").partition("\n")[0][:80] or "unknown"


def packages() -> dict[str, Distribution]:
    """Every installed package but ours, by its normalised name."""
    found = {re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower(): package for package in distributions()}
    return {name: found[name] for name in sorted(found) if name != "mnemosine"}


def bill() -> dict[str, object]:
    """The bill as CycloneDX writes it."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "mnemosine"}},
        "components": [
            {
                "type": "library",
                "name": name,
                "version": package.version,
                "purl": f"pkg:pypi/{name}@{package.version}",
                "licenses": [{"license": {"name": licence_of(package)}}],
            }
            for name, package in packages().items()
        ],
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["licences"]:
        lines = [f"{name} {package.version}: {licence_of(package)}" for name, package in packages().items()]
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        json.dump(bill(), sys.stdout, indent=1)
