"""`mnemosine doctor`."""

import asyncio
import sys

import click

from app.commands.settings import env_file_option, read_settings


@click.command()
@click.option(
    "--replicas", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Machines that serve so."
)
@env_file_option
def doctor(replicas: int, env_file: str) -> None:
    """Compare settings, machine, database and Redis; exit status 1 where something must be changed."""
    settings = read_settings(env_file)

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
