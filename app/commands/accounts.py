"""`mnemosine create-user` and `create-key`."""

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from app.commands.settings import env_file_option, read_settings

if TYPE_CHECKING:
    from app.config import Settings


@click.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["user", "admin"]), default="user", show_default=True)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input, one line.")
@env_file_option
def create_user(name: str, role: str, password_stdin: bool, env_file: str) -> None:
    """Add a user. Without --password-stdin a password is generated and printed once, on standard output."""
    settings = read_settings(env_file)

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


@click.command()
@click.argument("username")
@click.option("--name", default="command line", show_default=True, help="What the key is called in lists.")
@click.option("--expires-in-days", type=click.FloatRange(0, 3650, min_open=True), help="Days that it is good for.")
@click.option("--agent", "agents", multiple=True, help="An agent that it may use; give it once for each.  [all]")
@click.option("--requests-per-minute", type=click.IntRange(1, 1_000_000_000), help="A limit of its own.")
@click.option("--tokens-per-minute", type=click.IntRange(1, 1_000_000_000), help="A limit of its own.")
@click.option("--chat-ui", is_flag=True, help="Believe the chat headers of the interface that uses it.")
@env_file_option
def create_key(username: str, env_file: str, **wishes: Any) -> None:
    """Make an API key for USERNAME.

    It is printed this once, on standard output.
    """
    settings = read_settings(env_file)

    from app.core.security import open_data_dir

    open_data_dir(settings.data_dir)
    key = asyncio.run(_create_key(settings, username, {**wishes, "agents": wishes["agents"] or None}))
    click.echo(f"A key for {username!r} was made. It is shown this once.", err=True)
    click.echo(key)


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
