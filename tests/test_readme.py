"""What the README shows is what happens: its blocks run against a server that was started as it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process import ROOT, serving

README = (ROOT / "README.md").read_text()
PASSWORD = "a password for tests"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("language", ["sh", "python"])
def test_the_first_prompt_works_as_shown(tmp_path: Path, language: str) -> None:
    if language == "sh" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (block,) = blocks(language)
    with serving(tmp_path, ADMIN_PASSWORD=PASSWORD) as server:
        program = [sys.executable, "-c", block] if language == "python" else ["sh", "-c", block]
        done = subprocess.run(
            [part.replace("http://127.0.0.1:8000", server.url) for part in program],
            env={"PATH": os.environ["PATH"], "PASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            check=True,
        )
    assert "Hello, world!" in done.stdout


def test_the_commands_are_targets_of_the_makefile() -> None:
    named = set(re.findall(r"^make (\w+)$", README, re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"serve", "test"} <= named <= targets


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
