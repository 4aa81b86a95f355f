"""Make `.venv` with exactly the versions and the files that constraints.txt names: install.py [EXTRA ...].

pip turns on hash checking as soon as a constraint carries a hash, and then refuses an editable project. So: resolve
without hashes, pick the entries with their hashes for what was resolved, install those with `--require-hashes`, and
put the project on top. uv does all of that by itself and is used where it is on PATH.

Runs on any Python 3, so that an old one gets a sentence instead of a syntax error.
"""

# ruff: noqa: D103, S603 - a script whose commands are constants

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "constraints.txt"


def fail(message):
    sys.stderr.write(f"make: {message}\n")
    raise SystemExit(1)


def run(*command):
    done = subprocess.run([str(part) for part in command], cwd=str(ROOT), check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def without_hashes(text):
    return "".join(
        line.rstrip(" \\\n") + "\n" for line in text.splitlines(True) if not line.lstrip().startswith(("--hash", "#"))
    )


def selected(text, wanted):
    """The entries of `text` for the packages in `wanted`, each with its hashes."""
    chosen, keep, found = [], False, set()
    for line in text.splitlines(True):
        name = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==", line)
        if name:
            keep = canonical(name.group(1)) in wanted
            found.add(canonical(name.group(1)))
        if keep and not line.lstrip().startswith("#"):
            chosen.append(line)
    missing = sorted(wanted - found)
    if missing:
        fail(f"constraints.txt does not name {', '.join(missing)}; run: make constraints")
    return "".join(chosen)


def environment_is_usable():
    python = VENV / "bin" / "python"
    if not python.exists():
        return False
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    return subprocess.run([str(python), "-c", code], check=False).returncode == 0


def install_with_uv(uv, project):
    if not environment_is_usable():
        run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, VENV)
    run(
        uv, "pip", "install", "--quiet", "--python", VENV / "bin" / "python", "--compile-bytecode",
        "--constraint", CONSTRAINTS, "--editable", project,
    )  # fmt: skip


def install_with_pip(project):
    python = VENV / "bin" / "python"
    has_pip = environment_is_usable() and (
        subprocess.run([str(python), "-m", "pip", "--version"], stdout=subprocess.DEVNULL, check=False).returncode == 0
    )
    if not has_pip:
        try:
            import ensurepip  # noqa: F401 - Debian splits it off
            import venv  # noqa: F401
        except ImportError:
            fail("this Python has no venv module; on Debian and Ubuntu: apt install python3-venv")
        run(sys.executable, "-m", "venv", "--clear", VENV)
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
    hashed = CONSTRAINTS.read_text()
    plain, report, locked = VENV / "constraints.txt", VENV / "resolved.json", VENV / "locked.txt"
    plain.write_text(without_hashes(hashed))
    run(*pip, "install", "--dry-run", "--ignore-installed", "--report", report,
        "--constraint", plain, "--editable", project)  # fmt: skip
    resolved = {canonical(item["metadata"]["name"]) for item in json.loads(report.read_text())["install"]}
    locked.write_text(selected(hashed, resolved - {"mnemosine"}))
    run(*pip, "install", "--no-deps", "--use-pep517", "--require-hashes", "--requirement", locked)
    run(*pip, "install", "--no-deps", "--editable", ROOT)


def main():
    if sys.version_info < (3, 11):  # noqa: UP036 - that is the question
        fail(
            f"Mnemosine needs Python 3.11 or later, and {sys.executable} is {sys.version.split()[0]}; "
            "example: make serve PYTHON=python3.11"
        )
    extras = ",".join(sys.argv[1:])
    project = f"{ROOT}[{extras}]" if extras else str(ROOT)
    sys.stderr.write("Setting up .venv (about a minute the first time)\n")
    # Without bytecode every start takes more than twice as long.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    uv = shutil.which("uv")
    if uv:
        install_with_uv(uv, project)
    else:
        install_with_pip(project)


main()
