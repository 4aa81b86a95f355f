"""The answers that are being streamed by this worker, so that they can be told when it has to go."""

from collections.abc import Callable, Generator
from contextlib import contextmanager


class OpenStreams:
    """Every stream under way, and a way to end them all.

    A shutdown waits for requests, and a stream may last for minutes: so it is told in time, and ends with an error that
    its client understands.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self._endings: set[Callable[[], None]] = set()

    def __len__(self) -> int:
        return len(self._endings)

    @contextmanager
    def held(self, end: Callable[[], None]) -> Generator[None]:
        """Count a stream for the length of the block; `end` is called once if the worker has to go meanwhile."""
        self._endings.add(end)
        try:
            yield
        finally:
            self._endings.discard(end)

    def drain(self) -> None:
        """Tell every stream to end now, and refuse new ones from here on."""
        self.is_draining = True
        for end in list(self._endings):
            end()
