"""`mnemosine check-config`."""

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

    rows = describe(read_settings(env_file))
    name_width = max(len(row.name) for row in rows)
    value_width = max(len(row.value) for row in rows if len(row.value) <= 40)
    for row in rows:
        click.echo(f"{row.name:<{name_width}}  {row.value or '-':<{value_width}}  ({row.origin})")
