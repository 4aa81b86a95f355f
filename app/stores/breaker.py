"""A circuit breaker: who has failed several times in a row is left alone until a probe succeeds."""

from collections.abc import Callable
from time import monotonic


class Breaker:
    """Closed until `failures_to_open` failures in a row; then open, with one probe at a time.

    The first probe is due after `pause_s`; each that fails, and each opening soon after a closing, doubles the pause,
    up to `longest_pause_s`.
    """

    def __init__(
        self,
        *,
        failures_to_open: int = 5,
        pause_s: float = 0.5,
        longest_pause_s: float = 4.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.is_open = False
        self._failures_to_open = failures_to_open
        self._first_pause_s = self._pause_s = pause_s
        self._longest_pause_s = longest_pause_s
        self._clock = clock
        self._failures = 0
        self._probe_at = 0.0
        self._closed_at = -longest_pause_s

    @property
    def probe_in_s(self) -> float:
        """Seconds until the next probe is due; 0 where it is, or where the breaker is closed."""
        return max(0.0, self._probe_at - self._clock()) if self.is_open else 0.0

    def succeeded(self) -> None:
        """A call that mattered went well: the failures before it do not count any more."""
        self._failures = 0

    def failed(self) -> bool:
        """A call failed; gives whether that opened the breaker."""
        self._failures += 1
        if self.is_open or self._failures < self._failures_to_open:
            return False
        if self._clock() - self._closed_at > 2 * self._longest_pause_s:
            self._pause_s = self._first_pause_s
        self.is_open = True
        self._probe_at = self._clock() + self._pause_s
        return True

    def probe_failed(self) -> None:
        """Leave it alone for longer."""
        self._pause_s = min(self._longest_pause_s, 2 * self._pause_s)
        self._probe_at = self._clock() + self._pause_s

    def close(self) -> bool:
        """The probe went well; gives whether that closed an open breaker."""
        was_open, self.is_open = self.is_open, False
        self._failures = 0
        if was_open:
            self._pause_s = min(self._longest_pause_s, 2 * self._pause_s)
            self._closed_at = self._clock()
        return was_open
