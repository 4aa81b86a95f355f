"""What is installed: by hash, under licences that were looked at, without code that runs at every start of Python."""

import importlib.util
import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

ALLOWED = {
    *("MIT", "MIT-0", "MIT License", "ISC", "Apache-2.0", "Apache Software License", "BSD-2-Clause", "BSD-3-Clause"),
    *(
        "BSD License",
        "3-Clause BSD License",
        "PSF-2.0",
        "Python Software Foundation License",
        "The Unlicense (Unlicense)",
    ),
    *("MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"),
}
"""Each lets the product be used, changed and sold; the Mozilla licence asks for changes to its own files."""

LOOKED_AT = {
    "forbiddenfruit": "both MIT and GPLv3+, at one's choice; only in development, by blockbuster",
    "pytest-timeout": "MIT, and its classifiers say `DFSG approved` beside it; only in development",
}
"""Packages whose own words are not in the list, and what was found."""


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unknown_licences(said: dict[str, str]) -> list[str]:
    return [
        f"{name}: {licence}"
        for name, licence in said.items()
        if name not in LOOKED_AT and not ALLOWED.issuperset(re.split(r" AND | OR ", licence))
    ]


def test_every_licence_was_looked_at() -> None:
    bill = script("bill")
    said = {name: bill.licence_of(package) for name, package in bill.packages().items()}
    assert len(said) > 50
    assert unknown_licences(said) == []
    assert unknown_licences({"a": "unknown", "b": "MIT", "c": "MIT AND SSPL-1.0"}) == [
        "a: unknown",
        "c: MIT AND SSPL-1.0",
    ]


def test_the_bill_of_materials_names_every_package_with_its_version() -> None:
    printed = subprocess.run([sys.executable, ROOT / ".ci/bill.py"], capture_output=True, check=True).stdout
    bill = json.loads(printed)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    purls = {component["purl"] for component in bill["components"]}
    assert any(purl.startswith("pkg:pypi/fastapi@") for purl in purls)
    assert len(purls) == len(bill["components"]) > 50


def pins() -> dict[str, str]:
    """Each pin of constraints.txt with what stands below it."""
    found = re.split(r"^(?=[A-Za-z0-9])", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    return {entry.split("==")[0]: entry for entry in found if "==" in entry}


def test_every_pin_has_hashes_and_no_index_is_named() -> None:
    assert len(pins()) > 100
    assert [name for name, entry in pins().items() if "--hash=sha256:" not in entry] == []
    assert not re.search(r"https?://|--index|--find-links", (ROOT / "constraints.txt").read_text())


def test_what_must_not_be_there_is_not() -> None:
    """Libraries whose faults are in `SECURITY.md`, and plain httpx, which loses slots of its pool."""
    unwanted = {"python-jose", "passlib", "slowapi", "fastapi-limiter", "litellm", "langchain", "langgraph"}
    assert unwanted.isdisjoint(pins())
    core = {re.split(r"[\[<>=;]", line)[0] for line in script("bill").packages()}
    assert "httpx" not in core


def test_no_package_runs_code_at_every_start_of_python() -> None:
    """A `.pth` file can: so did the poisoned releases of LiteLLM in March 2026."""
    known = {"_virtualenv.pth"}
    found = {
        str(file)
        for package in distributions()
        if package.metadata["Name"] != "mnemosine"
        for file in package.files or ()
        if file.suffix == ".pth" and file.name not in known
    }
    assert found <= {"distutils-precedence.pth"}, found  # setuptools' own


def test_an_audit_that_looks_nothing_up_fails() -> None:
    faults_of = script("audit").faults_of
    bad = {"dependencies": [{"name": "jinja2", "version": "2.4.1", "vulns": [{"id": "CVE-2016-10745"}]}]}
    skipped = {"dependencies": [{"name": "jinja2", "skip_reason": "Dependency not found"}]}
    good: dict[str, Any] = {"dependencies": [{"name": "fastapi", "version": "1", "vulns": []}]}
    assert faults_of(bad, good) == []
    assert "cannot be reached" in faults_of(skipped, good)[0]
    assert "cannot be reached" in faults_of({}, {})[0]
    assert "was skipped" in faults_of(bad, skipped)[0]
    assert "CVE-2016-10745" in faults_of(bad, bad)[0]
    assert faults_of(bad, {}) == ["nothing was audited"]
