"""`mnemosine serve`."""

import asyncio
import functools
import gc
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from app import __version__
from app.commands.settings import env_file_option, read_settings

if TYPE_CHECKING:
    from app.config import Settings
    from app.installation import FirstStart

_log = logging.getLogger(__name__)


@click.command()
@click.argument("agents", metavar="[MODULE:AGENT]...", nargs=-1)
@click.option("--host", help="Address to listen on.  [HOST, 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.  [PORT, 8000]")
@click.option("--workers", type=int, help="Processes that serve.  [WORKERS, 1]")
@click.option("--keep-alive", type=int, help="Seconds an idle connection stays open.  [KEEP_ALIVE_SECONDS, 5]")
@click.option(
    "--graceful-timeout",
    type=int,
    help="Seconds that running requests get at shutdown.  [GRACEFUL_TIMEOUT_SECONDS, 25]",
)
@click.option(
    "--worker-connections",
    type=int,
    help="Requests a worker answers at once; as many again wait, then 503.  [MAX_REQUESTS_IN_FLIGHT, 1000]",
)
@click.option(
    "--max-requests", type=int, help="Requests after which a worker is replaced; 0: never.  [MAX_REQUESTS, 0]"
)
@click.option(
    "--max-requests-jitter",
    type=int,
    help="At most so many more, by chance.  [MAX_REQUESTS_JITTER, a tenth of --max-requests]",
)
@click.option(
    "--max-worker-memory",
    type=int,
    help="MiB of resident memory above which a worker is replaced; 0: never.  [MAX_WORKER_MEMORY_MB, 0]",
)
@env_file_option
def serve(
    agents: tuple[str, ...],
    host: str | None,
    port: int | None,
    workers: int | None,
    keep_alive: int | None,
    graceful_timeout: int | None,
    worker_connections: int | None,
    max_requests: int | None,
    max_requests_jitter: int | None,
    max_worker_memory: int | None,
    env_file: str,
) -> None:
    """Serve until SIGTERM or Ctrl+C.

    MODULE:AGENT are Pydantic AI agents in Python code, looked for in the current folder too; they replace AGENTS.
    """
    # A start makes hardly any rubbish, and looking for it took a fifth of its time; `app.server` enables it again.
    gc.disable()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _leave)
    settings = read_settings(
        env_file,
        host=host,
        port=port,
        workers=workers,
        keep_alive_seconds=keep_alive,
        graceful_timeout_seconds=graceful_timeout,
        max_requests_in_flight=worker_connections,
        max_requests=max_requests,
        max_requests_jitter=max_requests_jitter,
        max_worker_memory_mb=max_worker_memory,
        agents=agents or None,
    )
    if settings.agents and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())

    from app.server import Doorman, Options, bind, return_memory
    from app.server import serve as serve_until_told

    return_memory()
    listener = bind(settings.host, settings.port)
    # Whoever waits for a new installation to answer wants to read its password next, so that one has to come first.
    has_served = (settings.data_dir / "numbers").is_dir()
    doorman = Doorman(listener) if has_served else None
    if doorman is not None:
        doorman.start()

    from app.core.security import open_data_dir
    from app.logs import configure_logging

    open_data_dir(settings.data_dir)
    configure_logging("debug" if settings.debug else settings.log_level, settings.log_format)

    from app import doctor
    from app.installation import prepare
    from app.main import create_app

    # Here, in the one parent: the workers find everything ready.
    _show_once(asyncio.run(prepare(settings)))
    doctor.allow_files(settings)
    for finding in asyncio.run(doctor.examine(settings)):
        if finding.severity != "note" and not finding.is_outage:
            # No argument: of lines with equal templates only the first in a second is shown.
            _log.warning(finding.line())

    options = Options(
        workers=settings.workers,
        keep_alive_s=settings.keep_alive_seconds,
        graceful_timeout_s=settings.graceful_timeout_seconds,
        max_requests=settings.max_requests,
        max_requests_jitter=settings.max_requests_jitter_in_effect,
        max_worker_bytes=settings.max_worker_memory_mb * 2**20,
        trusted_proxies=settings.trusted_proxies,
    )
    announce = functools.partial(_announce, settings, listener.getsockname()[1])
    make = functools.partial(create_app, settings)
    serve_until_told(make, listener, options, announce, preload="app.core.agent_stack", doorman=doorman)


def _show_once(first: "FirstStart | None") -> None:
    """Print the new administrator on the terminal; never through logging, which may be collected."""
    if first is not None:
        rule = "-" * 68
        click.echo(f"{rule}\n{first.notice().rstrip()}\n{rule}", err=True)


def _announce(settings: "Settings", port: int) -> None:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - only compared
    base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    everywhere = "" if host == settings.host else f" and every address of this machine, port {port}"
    offline = " (built in, no network; set OPENAI_API_KEY or DEFAULT_MODEL for a real one)"
    model = f"{settings.default_model}{offline if settings.default_model == 'offline' else ''}"
    docs = f"{base}/docs{'' if settings.docs_open else ' (login required)'}"
    click.echo(
        f"Mnemosine {__version__} listens on {base}{everywhere}\n"
        f"  docs       {docs}\n"
        f"  dashboard  {base}/dashboard\n"
        f"  model      {model}\n"
        "Press Ctrl+C to stop."
    )
    sys.stdout.flush()


def _leave(signum: int, frame: object) -> NoReturn:
    # No SystemExit: raised in the middle of somebody's import it comes out as another error, with its traceback.
    # Nothing that has been opened by now minds: a migration is one transaction, files are written aside and renamed.
    os._exit(0)
