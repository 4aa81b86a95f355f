"""Whether what was opened is closed again."""

import asyncio
import threading
from collections.abc import Callable


def lasting_threads() -> list[threading.Thread]:
    """Threads of ours: those of the event loop's own executor are bounded, and are the loop's to keep."""
    return [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]


async def assert_nothing_more(held: Callable[[], tuple[int, ...]], before: tuple[int, ...]) -> None:
    """Fail where `held()` counts more of anything than `before`, also after a bounded wait.

    A connection's thread ends a moment after the connection; so one may have been among those before, and not now.
    """

    def more() -> bool:
        return any(now > then for now, then in zip(held(), before, strict=True))

    for _ in range(200):
        if not more():
            break
        await asyncio.sleep(0.02)
    assert not more(), (before, held(), [thread.name for thread in threading.enumerate()])
