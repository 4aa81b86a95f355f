"""The command line. Commands import what they need when they run, so `mnemosine --help` is quick."""

import asyncio
import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

from app import __version__
from app.errors import BadConfiguration, MnemosineError

if TYPE_CHECKING:
    from app.config import Settings
    from app.runtime import FirstStart

_log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


class _Failure(click.ClickException):
    """One line on standard error; exit status 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"mnemosine: {' '.join(self.message.split())}", err=True)


class _BadSetting(_Failure):
    exit_code = 2


class _Commands(click.Group):
    """Turns our errors into one line: exit status 2 for a bad setting, 1 for anything else that may be told."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MnemosineError as error:
            failure = _BadSetting if isinstance(error, BadConfiguration) else _Failure
            raise failure(error.detail) from error


def main() -> None:
    """Run `mnemosine`."""
    cli(prog_name="mnemosine")


def _env_file_option(command: F) -> F:
    return click.option(
        "--env-file", type=click.Path(dir_okay=False), default=".env", show_default=True, help="Settings file to read."
    )(command)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="mnemosine %(version)s")
def cli() -> None:
    """Serve AI agents over HTTP: pooled, cached, recorded, and measured truthfully."""


@cli.command()
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
@_env_file_option
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
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _leave)
    settings = _settings(
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

    from app.core.security import open_data_dir
    from app.logs import configure_logging
    from app.server import Options, bind
    from app.server import serve as serve_until_told

    open_data_dir(settings.data_dir)
    listener = bind(settings.host, settings.port)
    configure_logging("debug" if settings.debug else settings.log_level, settings.log_format)

    from app import doctor
    from app.main import create_app
    from app.runtime import prepare

    # Here, in the one parent: the workers find everything ready.
    _show_once(asyncio.run(prepare(settings)))
    doctor.allow_files(settings)
    for finding in asyncio.run(doctor.examine(settings)):
        if finding.severity != "note" and not finding.is_outage:
            _log.warning("%s", finding.line())

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
    serve_until_told(make, listener, options, announce, preload="app.core.prompt_service")


@cli.command()
@click.option("--example", is_flag=True, help="Print a .env with every setting at its default instead.")
@_env_file_option
def check_config(example: bool, env_file: str) -> None:
    """Show the settings in effect, secrets masked; exit status 2 where one cannot work."""
    if example:
        from app.config import example_env

        click.echo(example_env(), nl=False)
        return
    from app.config import describe

    rows = describe(_settings(env_file))
    name_width = max(len(row.name) for row in rows)
    value_width = max(len(row.value) for row in rows if len(row.value) <= 40)
    for row in rows:
        click.echo(f"{row.name:<{name_width}}  {row.value or '-':<{value_width}}  ({row.origin})")


@cli.command()
@click.option(
    "--replicas", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Machines that serve so."
)
@_env_file_option
def doctor(replicas: int, env_file: str) -> None:
    """Compare settings, machine, database and Redis; exit status 1 where something must be changed."""
    settings = _settings(env_file)

    from app.doctor import examine

    findings = asyncio.run(examine(settings, replicas=replicas))
    for finding in findings:
        click.echo(
            f"{finding.severity}: {finding.setting}={finding.value}\n  {finding.problem}\n  cure: {finding.cure}"
        )
    counts = {each: sum(finding.severity == each for finding in findings) for each in ("failure", "warning", "note")}
    click.echo(", ".join(f"{each}s: {count}" for each, count in counts.items()))
    if counts["failure"]:
        sys.exit(1)


@cli.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["user", "admin"]), default="user", show_default=True)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input, one line.")
@_env_file_option
def create_user(name: str, role: str, password_stdin: bool, env_file: str) -> None:
    """Add a user. Without --password-stdin a password is generated and printed once, on standard output."""
    settings = _settings(env_file)

    from app.core.security import generate_password, open_data_dir

    open_data_dir(settings.data_dir)
    given = sys.stdin.readline().rstrip("\r\n") if password_stdin else None
    if given is not None and len(given) < 8:
        raise click.UsageError("the password must have at least 8 characters")
    password = given if given is not None else generate_password()

    asyncio.run(_create_user(settings, name, password, "admin" if role == "admin" else "user"))
    click.echo(f"The {role} {name!r} was created.", err=True)
    if given is None:
        click.echo(password)


@cli.command()
@click.argument("username")
@click.option("--name", default="command line", show_default=True, help="What the key is called in lists.")
@click.option("--expires-in-days", type=click.FloatRange(0, 3650, min_open=True), help="Days that it is good for.")
@click.option("--agent", "agents", multiple=True, help="An agent that it may use; give it once for each.  [all]")
@click.option("--requests-per-minute", type=click.IntRange(1, 1_000_000_000), help="A limit of its own.")
@click.option("--tokens-per-minute", type=click.IntRange(1, 1_000_000_000), help="A limit of its own.")
@click.option("--chat-ui", is_flag=True, help="Believe the chat headers of the interface that uses it.")
@_env_file_option
def create_key(username: str, env_file: str, **wishes: Any) -> None:
    """Make an API key for USERNAME and print it, this once, on standard output."""
    settings = _settings(env_file)

    from app.core.security import open_data_dir

    open_data_dir(settings.data_dir)
    key = asyncio.run(_create_key(settings, username, {**wishes, "agents": wishes["agents"] or None}))
    click.echo(f"A key for {username!r} was made. It is shown this once.", err=True)
    click.echo(key)


@cli.command()
@click.argument("url")
@click.option("--token", envvar="MNEMOSINE_TOKEN", help="API key or JWT to send.  [MNEMOSINE_TOKEN]")
@click.option("--connections", type=click.IntRange(1, 1000), help="Requests at once under load.  [asks, 10]")
@click.option("--seconds", type=click.FloatRange(1, 600), help="Time for all parts together.  [asks, 20]")
@click.option("--hot", type=click.FloatRange(0, 1), help="Share of questions that were asked before.  [asks, 0.8]")
@click.option(
    "--requests", type=click.IntRange(20, 1_000_000), default=20_000, show_default=True, help="At most so many in all."
)
@click.option("--agent", help="The agent to ask.  [default]")
@click.option("--save", type=click.Path(dir_okay=False, writable=True), help="Write the report to this file as JSON.")
@click.option("--baseline", type=click.File(), help="A saved report to compare with.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
def bench(
    url: str,
    token: str | None,
    connections: int | None,
    seconds: float | None,
    hot: float | None,
    requests: int,
    agent: str | None,
    save: str | None,
    baseline: TextIO | None,
    yes: bool,
) -> None:
    """Load the server at URL, one of your own, and report how it answers.

    New questions go to its model and cost what they cost. Exit status 1 where nothing was answered.
    """
    from app import bench as bencher

    where = bencher.checked_url(url)
    if not token:
        raise click.UsageError("no credential; set MNEMOSINE_TOKEN to an API key, or give --token")
    earlier = bencher.read_baseline(baseline.read()) if baseline else None
    asks = not yes and sys.stdin.isatty()

    def chosen(value: Any, question: str, usual: Any, kind: Any) -> Any:
        return value if value is not None else click.prompt(question, default=usual, type=kind) if asks else usual

    plan = bencher.Plan(
        url=where,
        credential=token,
        connections=chosen(connections, "Connections", 10, click.IntRange(1, 1000)),
        seconds=chosen(seconds, "Seconds", 20.0, click.FloatRange(1, 600)),
        hot=chosen(hot, "Share of known questions", 0.8, click.FloatRange(0, 1)),
        requests=requests,
        agent=agent,
    )
    if not bencher.is_here(where) and not yes:
        if not asks:
            raise click.UsageError(f"{where} is not this machine; if it is yours to load, say so with --yes")
        click.confirm(f"Send up to {requests:,} requests to {where}, which is yours?", abort=True, err=True)
    report = bencher.run(plan, lambda line: click.echo(line, err=True))
    if save:
        Path(save).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(bencher.page(where, report, earlier))
    if not bencher.any_answered(report):
        raise _Failure("nothing was answered")


@cli.group()
def agents() -> None:
    """Look after agent files."""


@agents.command("schema")
def agents_schema() -> None:
    """Print the JSON schema of an agent file, for editors."""
    from app.core.agent_files import schema

    click.echo(json.dumps(schema(), indent=2))


@agents.command("reload")
@_env_file_option
def agents_reload(env_file: str) -> None:
    """Check the agents, then have every running worker of DATA_DIR read them again within a second."""
    import time

    settings = _settings(env_file)

    from app.runtime import RELOAD_STAMP, load_agents

    names = ", ".join(sorted(agent.name for agent in load_agents(settings)))
    (settings.data_dir / RELOAD_STAMP).write_text(f"0 {time.time_ns()}", encoding="utf-8")
    click.echo(f"told the workers to read: {names}")


@cli.group()
def db() -> None:
    """Look at the database schema, or bring it up to date."""


@db.command()
@_env_file_option
def upgrade(env_file: str) -> None:
    """Bring the schema up to date; `serve` does the same at its start."""
    settings = _settings(env_file)

    from app.core.security import open_data_dir
    from app.db import schema

    open_data_dir(settings.data_dir)
    changed = schema.upgrade(settings.database_url)
    click.echo(f"{'upgraded to' if changed else 'already at'} {schema.head()}")


@db.command()
@_env_file_option
def current(env_file: str) -> None:
    """Print the revision of the database, and the one that this version works with."""
    settings = _settings(env_file)

    from app.db import schema

    click.echo(f"database {schema.current(settings.database_url) or 'empty'}, code {schema.head()}")


def _settings(env_file: str, **overrides: Any) -> "Settings":
    from app.config import export_foreign_variables, load_settings

    settings = load_settings(env_file, **overrides)
    export_foreign_variables(env_file)
    for line in settings.warnings:
        click.echo(f"warning: {line}", err=True)
    return settings


async def _create_user(settings: "Settings", name: str, password: str, role: Any) -> None:
    from app.core.security import PasswordHasher
    from app.db import schema, users
    from app.db.async_session import open_database

    await asyncio.to_thread(schema.upgrade, settings.database_url)
    hasher = PasswordHasher(threads=1)
    try:
        hashed = await hasher.hash(password)
    finally:
        await hasher.aclose()
    async with open_database(settings.database_url) as database, database.write() as session:
        await users.create_user(session, username=name, password_hash=hashed, role=role)


async def _create_key(settings: "Settings", username: str, wishes: dict[str, Any]) -> str:
    from app.core.accounts import KeyWishes, make_key
    from app.db import api_keys, schema, users
    from app.db.async_session import open_database
    from app.errors import NotFound

    await asyncio.to_thread(schema.upgrade, settings.database_url)
    async with open_database(settings.database_url) as database, database.write() as session:
        user = await users.find_user(session, username)
        if user is None:
            raise NotFound(f"there is no user {username!r}; make one with: mnemosine create-user {username}")
        row, key = make_key(user.id, KeyWishes(**wishes))
        await api_keys.add_api_key(session, row)
    return key


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
