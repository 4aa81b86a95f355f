"""Several workers: gunicorn's arbiter over processes that were forked after the imports, each with our server.

Code that is imported is shared between them as long as nobody writes to it: hence the freeze before each fork.
"""

import contextlib
import gc
import logging
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, cast

import psutil
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from app.server.listener import turn_newcomers_away, until_nobody_waits
from app.server.options import Application, Options
from app.server.server import Server

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_HARD_STOP_S = 6.0
"""After the grace time, for a worker to close what it opened; then it is killed."""
_RESPAWN_PAUSE_S = 1.0
"""Between a worker that died before it was ready and the next attempt."""
_STARTING, _READY, _FAILED, _LEAVING = range(4)


class _WorkerServer(Server):
    """The server of one worker; only SIGTERM from its parent ends it, once and in order."""

    def __init__(
        self, worker: "PreforkWorker", application: Application, options: Options, kept: Sequence[socket.socket]
    ) -> None:
        super().__init__(application, options, kept)
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End on SIGTERM. A terminal sends SIGINT to everybody; the parent decides what it means."""
        if sig == signal.SIGTERM:
            self._worker.told_to_end = True
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Tell the parent how we are; end when it is gone, or when it is time for a successor."""
        worker = self._worker
        if counter % 10 == 0:
            worker.notify()
            if worker.ppid != os.getppid():
                self.should_exit = True
            limit = self.options.max_worker_bytes
            # Not in its first seconds: a limit below what every worker needs must not become a storm of forks.
            if limit and counter and counter % 50 == 0 and (size := psutil.Process().memory_info().rss) > limit:
                _log.warning("this worker has %d MiB, more than MAX_WORKER_MEMORY_MB; it is replaced", size >> 20)
                return True
        if worker.state == _STARTING and (loaded := self.application.is_loaded) is not None:
            worker.tell(_READY if loaded else _FAILED)
        return await super().on_tick(counter)

    async def close_listeners(self, sockets: list[socket.socket]) -> None:
        """Where all end, accept what is left; where only this one ends, the others and its successor do."""
        self._worker.tell(_LEAVING)
        if self._worker.told_to_end:
            for listener in sockets:
                await until_nobody_waits(listener)
        self._close(sockets)


class PreforkWorker(Worker):
    """One worker as the arbiter sees it: `state` is one byte of memory that both processes share."""

    options: Options
    kept: Sequence[socket.socket] = ()
    """Connections from before the first fork; the first worker serves them."""
    pid: int  # pyright: ignore[reportIncompatibleVariableOverride] - a text until the fork

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._shared = mmap.mmap(-1, 1)
        self.born_at = time.monotonic()
        self.outdated = False
        self.told_to_end = False

    @property
    def state(self) -> int:
        """What the worker said last."""
        return self._shared[0]

    def tell(self, state: int) -> None:
        """Say something to the parent, and wake it."""
        self._shared[0] = state
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.ppid, signal.SIGCHLD)

    def init_signals(self) -> None:
        """From here on the parent's signals mean something to this process."""
        for signum in self.SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH):
            signal.signal(signum, signal.SIG_IGN)
        self._server = _WorkerServer(self, cast("Application", self.app.wsgi()), self.options, self.kept)
        signal.signal(signal.SIGTERM, self._server.handle_exit)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def run(self) -> None:
        """Serve until the server ends."""
        try:
            self._server.run(sockets=list(self.sockets))
        except SystemExit as failure:
            # The status of a worker that could not begin ends the whole server. Only the first ones may do that.
            raise SystemExit(failure.code if self.age <= self.cfg.workers else 1) from None


class PreforkArbiter(Arbiter):
    """gunicorn's arbiter with other manners.

    SIGTERM, SIGINT and SIGQUIT all end it in order, a second one at once. A worker that leaves has its successor
    before it has gone. SIGHUP replaces the workers one by one, each when the one before is ready.
    """

    def __init__(self, app: BaseApplication, listener: socket.socket) -> None:
        super().__init__(app)
        self._listener = listener
        self._not_before = 0.0
        # It only wants what every socket has; its own class would bind once more.
        self.LISTENERS = cast("Any", [listener])  # pyright: ignore[reportAttributeAccessIssue]

    def handle_int(self) -> None:
        """Like SIGTERM."""
        self.handle_term()

    def handle_quit(self) -> None:
        """Like SIGTERM."""
        self.handle_term()

    def handle_hup(self) -> None:
        """Replace every worker that runs now."""
        _log.warning("replacing the workers one by one")
        for worker in self._workers():
            worker.outdated = True

    def handle_usr2(self) -> None:
        """Nothing: the program is not executed anew below its own workers."""

    def spawn_worker(self) -> Any:
        """Fork; a signal that comes before the child knows what it means waits for it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            return super().spawn_worker()
        finally:
            # The first worker has them now. It comes by here too, at its end.
            for client in PreforkWorker.kept:
                client.close()
            PreforkWorker.kept = ()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def manage_workers(self) -> None:
        """Make the workers as many as they should be; those that are leaving do not count."""
        staying = [worker for worker in self._workers() if worker.state != _LEAVING]
        outdated = [worker for worker in staying if worker.outdated]
        failed = [worker for worker in staying if worker.state == _FAILED and not worker.outdated]
        if outdated and failed:
            _log.error("a new worker could not load its agents; the old ones stay")
            for worker in outdated:
                worker.outdated = False
            for worker in failed:
                self._end(worker)
            return
        wanted = self.num_workers
        if outdated:
            is_ready = all(worker.state == _READY for worker in staying if not worker.outdated)
            if is_ready and len(staying) > self.num_workers:
                self._end(outdated[0])
                return
            wanted += 1
        for _ in range(wanted - len(staying)):
            if time.monotonic() < self._not_before:
                break
            self.spawn_worker()
        for worker in staying[: max(0, len(staying) - wanted)]:
            self._end(worker)

    def reap_workers(self) -> None:
        """Take note of workers that are gone."""
        before = self._workers()
        super().reap_workers()
        if any(worker.state == _STARTING and worker.pid not in self.WORKERS for worker in before):
            self._not_before = time.monotonic() + _RESPAWN_PAUSE_S

    def stop(self, graceful: bool = True) -> None:
        """End all workers: nobody new, running requests finish; at a second signal or after the grace time at once."""
        with contextlib.suppress(OSError):
            turn_newcomers_away(self._listener)
        self._listener.close()
        self.kill_workers(signal.SIGTERM)
        end = time.monotonic() + self.cfg.graceful_timeout + _HARD_STOP_S
        while self.WORKERS and time.monotonic() < end:
            signals = self.wait_for_signals(timeout=0.1)
            if {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}.intersection(signals):
                break
            self.reap_workers()
        self.kill_workers(signal.SIGKILL)
        while self.WORKERS and time.monotonic() < end + 1:
            self.reap_workers()
            time.sleep(0.01)

    def _workers(self) -> list[PreforkWorker]:
        """The workers, the oldest first."""
        return sorted(cast("list[PreforkWorker]", list(self.WORKERS.values())), key=lambda worker: worker.age)

    def _end(self, worker: PreforkWorker) -> None:
        # Marked here, since the worker itself needs a moment to say so.
        worker.tell(_LEAVING)
        self.kill_worker(worker.pid, signal.SIGTERM)


def _freeze(arbiter: Arbiter, worker: Worker) -> None:
    gc.freeze()


class _RootLogger(Logger):
    """gunicorn's lines go through our handler, like everybody's."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class _Prefork(BaseApplication):
    def __init__(
        self, make: Callable[[], Application], listener: socket.socket, options: Options, announce: Callable[[], None]
    ) -> None:
        self._make = make
        self._listener = listener
        self._options = options
        self._announce = announce
        super().__init__()

    def load_config(self) -> None:
        settings: dict[str, Any] = {
            "workers": self._options.workers,
            "worker_class": PreforkWorker,
            "preload_app": True,
            "pre_fork": _freeze,
            "when_ready": self._when_ready,
            "graceful_timeout": self._options.graceful_timeout_s,
            "timeout": 60,
            "logger_class": _RootLogger,
            "loglevel": "warning",
            "control_socket_disable": True,
            "proc_name": "mnemosine",
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self._make()

    def _when_ready(self, arbiter: Arbiter) -> None:
        self._announce()

    def run(self) -> None:
        PreforkWorker.options = self._options
        PreforkArbiter(self, self._listener).run()


def serve_with_workers(
    make: Callable[[], Application],
    listener: socket.socket,
    options: Options,
    announce: Callable[[], None],
    kept: Sequence[socket.socket] = (),
) -> None:
    """Serve in processes forked from this one, which stays as their supervisor, until SIGTERM or SIGINT.

    `make()` is called once, before the first fork, and should import all that the workers will need.
    """
    PreforkWorker.kept = kept
    gc.freeze()
    gc.enable()
    try:
        _Prefork(make, listener, options, announce).run()
    finally:
        sys.stdout.flush()
