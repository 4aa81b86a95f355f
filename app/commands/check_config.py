"""`mnemosine check-config`."""

import os
import sys

import click

from app.commands.settings import env_file_option, read_settings


@click.command()
@click.option("--example", is_flag=True, help="Print a .env with every setting at its default instead.")
@env_file_option
def check_config(example: bool, env_file: str) -> None:
    """Show the settings in effect, secrets masked.

    Exit status 2 where one cannot work.
    """
    if example:
        from app.config import example_env

        click.echo(example_env(), nl=False)
        return
    from app.config import describe

    settings = read_settings(env_file)
    rows = describe(settings)
    name_width = max(len(row.name) for row in rows)
    value_width = max(len(row.value) for row in rows if len(row.value) <= 40)
    for row in rows:
        click.echo(f"{row.name:<{name_width}}  {row.value or '-':<{value_width}}  ({row.origin})")

    from app.agent_room import check_models

    if settings.agents and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    check_models(settings)
