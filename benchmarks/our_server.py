"""The bare application of `benchmarks.servers` on our server: `python -m benchmarks.our_server PORT WORKERS LIMIT`."""

import asyncio
import importlib
import sys
from typing import Any

from app.server import Options, bind, serve


class Bare:
    is_loaded = True

    def __init__(self) -> None:
        self.draining, self.last_call = asyncio.Event(), asyncio.Event()
        self._application: Any = importlib.import_module("bare").application

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._application(scope, receive, send)


def main() -> None:
    port, workers, limit = map(int, sys.argv[1:])
    options = Options(workers=workers, max_requests=limit, max_requests_jitter=limit // 10)
    serve(Bare, bind("127.0.0.1", port), options, lambda: None)


if __name__ == "__main__":
    main()
