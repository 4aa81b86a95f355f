"""The error tree in the docstring is the tree in the code."""

import re
from pathlib import Path

from app import errors
from app.errors import MnemosineError

DRAWN = re.findall(r"^[│├└─ ]*(\w+) {2,}(?:(\d{3})  )?", errors.__doc__ or "", re.MULTILINE)


def tree(kind: type[MnemosineError]) -> list[type[MnemosineError]]:
    return [
        kind,
        *(found for child in kind.__subclasses__() if child.__module__ == errors.__name__ for found in tree(child)),
    ]


def test_every_error_is_drawn_and_every_drawn_error_exists() -> None:
    drawn = set(re.findall(r"\b[A-Z]\w+\b(?= {2,}|$)", errors.__doc__ or "", re.MULTILINE)) - {"The"}
    assert {kind.__name__ for kind in tree(MnemosineError)} <= drawn


def test_the_drawn_status_is_the_status() -> None:
    statuses = {name: int(status) for name, status in DRAWN if status}
    assert len(statuses) > 10
    for name, status in statuses.items():
        assert getattr(errors, name).status == status, name


def test_codes_are_unique_but_for_the_general_one() -> None:
    codes = [kind.code for kind in tree(MnemosineError) if kind not in (errors.ModelError,)]
    assert len(codes) == len(set(codes))


def test_every_code_has_its_line_of_documentation_with_its_status() -> None:
    page = (Path(__file__).parent.parent / "docs/reference/errors.md").read_text()
    documented = dict(re.findall(r"^\| `([a-z-]+)` \| (\d{3}|–) \|", page, re.MULTILINE))
    for kind in tree(MnemosineError):
        assert documented.get(kind.code) in (str(kind.status), "–"), kind.code
