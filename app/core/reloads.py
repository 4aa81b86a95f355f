"""Orders to read the agents again, and what became of them, between the processes of one data directory."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.errors import BadConfiguration, Unavailable
from app.stores.scoreboard import living

_ORDER = "agents.reload"
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one worker made of an order: the agents that it serves now, or why they stay as they were."""

    agents: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    refusal: str | None = None


class Reloads:
    """One worker's ear for orders in `data_dir`; it knows those that were there when it was made.

    `worker` is its name on the scoreboard. Every method reads or writes a small file; raises `OSError`.
    """

    def __init__(self, data_dir: Path, *, worker: str) -> None:
        self._data_dir = data_dir
        self._worker = worker
        self._heard = _read(data_dir / _ORDER)

    def give(self) -> None:
        """Order all other workers to read their agents again."""
        self._heard = _give(self._data_dir)

    def hear(self) -> str | None:
        """A new order, once; `None` where there is none."""
        order = _read(self._data_dir / _ORDER)
        if order == self._heard:
            return None
        self._heard = order
        return order

    def answer(self, order: str, outcome: Outcome) -> None:
        """Tell whoever gave `order` what became of it."""
        self._forget_the_dead()
        said = {"order": order, **asdict(outcome)}
        _write(_answer_of(self._data_dir, self._worker), json.dumps(said))

    def _forget_the_dead(self) -> None:
        wanted = {_answer_of(self._data_dir, worker) for worker in living(self._data_dir / "numbers")}
        for path in set(self._data_dir.glob(f"{_ORDER}.*")) - wanted:
            path.unlink(missing_ok=True)


def reload_and_wait(data_dir: Path, *, wait_s: float = 30.0) -> list[Outcome]:
    """Order the workers of `data_dir` to read their agents again; gives what became of it, one outcome a worker.

    Raises `BadConfiguration` where nobody serves from there, and `Unavailable` where a worker says nothing for
    `wait_s` seconds.
    """
    data_dir = data_dir.absolute()
    asked = living(data_dir / "numbers")
    if not asked:
        raise BadConfiguration(
            f"no server runs on DATA_DIR={data_dir}; call this with the server's settings: in its folder, "
            "with its --env-file, or with its DATA_DIR"
        )
    order = _give(data_dir)
    deadline = time.monotonic() + wait_s
    outcomes: dict[str, Outcome] = {}
    # Whoever comes later reads the agents as they are then; whoever ends meanwhile is not waited for.
    while silent := asked & living(data_dir / "numbers") - outcomes.keys():
        for worker in silent:
            if (outcome := _outcome(data_dir, worker, order)) is not None:
                outcomes[worker] = outcome
        if time.monotonic() > deadline:
            raise Unavailable(f"{len(silent)} of {len(asked)} workers said nothing for {wait_s:g} s; see their log")
        time.sleep(_LOOK_EVERY_S)
    if not outcomes:
        raise Unavailable(f"the server on DATA_DIR={data_dir} ended before it read its agents")
    return list(outcomes.values())


def _give(data_dir: Path) -> str:
    order = uuid4().hex
    _write(data_dir / _ORDER, order)
    return order


def _answer_of(data_dir: Path, worker: str) -> Path:
    return data_dir / f"{_ORDER}.{worker}"


def _outcome(data_dir: Path, worker: str, order: str) -> Outcome | None:
    text = _read(_answer_of(data_dir, worker))
    said: dict[str, Any] = json.loads(text) if text else {}
    if said.pop("order", None) != order:
        return None
    return Outcome(tuple(said["agents"]), tuple(said["changed"]), said["refusal"])


def _write(path: Path, text: str) -> None:
    # Aside and renamed: nobody reads half of it, and it may replace the file of another user.
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
