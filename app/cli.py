"""The command line: the commands of `app/commands` under one name, and their failures as one line."""

from typing import Any

import click

from app import __version__
from app.commands.accounts import create_key, create_user
from app.commands.agents import agents
from app.commands.bench import bench
from app.commands.chat import chat
from app.commands.check_config import check_config
from app.commands.completion import completion
from app.commands.db import db
from app.commands.doctor import doctor
from app.commands.init import init
from app.commands.serve import serve
from app.errors import BadConfiguration, MnemosineError


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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="mnemosine %(version)s")
def cli() -> None:
    """Serve AI agents over HTTP: pooled, cached, recorded, and measured truthfully.

    Exit status: 0 all is well; 1 it failed, and one line says why; 2 a setting or an argument is wrong.
    """


for command in (init, serve, chat, check_config, doctor, create_user, create_key, agents, db, bench, completion):
    cli.add_command(command)


def main() -> None:
    """Run `mnemosine`."""
    cli(prog_name="mnemosine")
