"""A page of the documentation as a reader uses it: its blocks, run in order and in one folder against a server."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.process import ROOT, ServerProcess

RUN = {"sh", "python"}
"""Languages of blocks that run."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and why it is not run, if it says so."""

    language: str
    text: str
    reason: str | None
    line: int


def blocks(page: str) -> Iterator[Block]:
    """Every fenced block of a page."""
    for found in re.finditer(r"^( *)```([^\n]*)\n(.*?)^\1```$", page, re.MULTILINE | re.DOTALL):
        before = page[: found.start()].rstrip().rpartition("\n")[2]
        reason = re.fullmatch(r"<!-- not run: (\S.+) -->", before.strip())
        text = re.sub(rf"^{found[1]}", "", found[3], flags=re.MULTILINE)
        yield Block(found[2].strip(), text, reason[1] if reason else None, page.count("\n", 0, found.start()) + 1)


def is_runnable(path: Path) -> bool:
    """Whether a page has a block that runs."""
    return any(block.language in RUN and block.reason is None for block in blocks(path.read_text()))


def run_blocks(path: Path, server: ServerProcess, folder: Path, *, data: Path, **environment: str) -> str:
    """Run what runs of a page in `folder`, against `server` with its DATA_DIR `data`; gives what all of it printed.

    Fails with the line of the first block that fails. Whoever is signed in at `server` is who asks.
    """
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (folder / ".curlrc").write_text("fail-with-body\nmax-time = 60\n")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "DATA_DIR": str(data),
        "MNEMOSINE_URL": server.url,
        "MNEMOSINE_TOKEN": server.make_key(),
        "TOKEN": server.headers["Authorization"].removeprefix("Bearer "),
        "OPENAI_API_KEY": "any",
    } | environment
    printed = ""
    for block in blocks(path.read_text()):
        if block.language not in RUN or block.reason is not None:
            continue
        text = block.text.replace("http://127.0.0.1:8000", server.url).replace("mn_...", environment["MNEMOSINE_TOKEN"])
        program = [sys.executable, "-c", text] if block.language == "python" else ["sh", "-euc", text]
        done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"line {block.line}:\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    return printed
