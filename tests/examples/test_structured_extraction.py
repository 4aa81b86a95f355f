"""`examples/structured-extraction`: answers that keep to a schema, and a program that takes them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.examples.conftest import Example
from tests.process import ROOT


@pytest.fixture(scope="module")
def extraction(serve: Callable[..., Example]) -> Example:
    return serve("structured-extraction", AGENTS_DIR="agents")


def test_its_page_shows_an_object(extraction: Example, tmp_path: Path) -> None:
    answer = json.loads(extraction.run_page(tmp_path))
    assert answer["response"]["priority"] == "low", "the first that the schema allows, says the fake provider"
    assert "The lamp hums." in answer["response"]["subject"]


def test_its_program_makes_a_ticket_of_each_complaint_and_the_second_run_asks_no_model(extraction: Example) -> None:
    complaints = (extraction.folder / "complaints.txt").read_text()
    before = extraction.provider.stats()["calls"]
    outputs = [run_program(extraction, complaints) for _ in range(2)]
    tickets = [json.loads(line) for line in outputs[0].splitlines()]
    assert len(tickets) == len(complaints.splitlines()) == 3
    for ticket, complaint in zip(tickets, complaints.splitlines(), strict=True):
        assert complaint in ticket["subject"]
        assert set(ticket) == {"subject", "priority"}
    assert outputs[1] == outputs[0]
    assert extraction.provider.stats()["calls"] == before + 3


def run_program(extraction: Example, complaints: str) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "MNEMOSINE_URL": extraction.server.url,
        "MNEMOSINE_TOKEN": extraction.server.make_key(),
    }
    command = [sys.executable, "tickets.py"]
    done = subprocess.run(
        command,
        cwd=extraction.folder,
        env=environment,
        input=complaints,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
