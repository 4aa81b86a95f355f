"""`mnemosine bench`."""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

import click

from app.errors import MnemosineError


@click.command()
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
        raise MnemosineError("nothing was answered")
