"""The application, opened for one test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.application import Application, open_application


@pytest.fixture
async def application(tmp_path: Path) -> AsyncIterator[Application]:
    async with open_application(tmp_path / "data") as opened:
        yield opened
