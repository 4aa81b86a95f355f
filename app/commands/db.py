"""`mnemosine db`."""

import click

from app.commands.settings import env_file_option, read_settings


@click.group()
def db() -> None:
    """Look at the database schema, or bring it up to date."""


@db.command()
@env_file_option
def upgrade(env_file: str) -> None:
    """Bring the schema up to date; `serve` does the same at its start."""
    settings = read_settings(env_file)

    from app.core.security import open_data_dir
    from app.db import schema

    open_data_dir(settings.data_dir)
    changed = schema.upgrade(settings.database_url)
    click.echo(f"{'upgraded to' if changed else 'already at'} {schema.head()}")


@db.command()
@env_file_option
def current(env_file: str) -> None:
    """Print the revision of the database, and the one that this version works with."""
    settings = read_settings(env_file)

    from app.db import schema

    click.echo(f"database {schema.current(settings.database_url) or 'empty'}, code {schema.head()}")
