"""What commands have in common: which settings file they read, and the settings from it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from app.config import Settings

F = TypeVar("F", bound=Callable[..., Any])


def env_file_option(command: F) -> F:
    """Give `command` the option `--env-file`."""
    return click.option(
        "--env-file", type=click.Path(dir_okay=False), default=".env", show_default=True, help="Settings file to read."
    )(command)


def read_settings(env_file: str, **overrides: Any) -> "Settings":
    """The settings in effect, their warnings on standard error; providers' own variables go into the environment."""
    from app.config import export_foreign_variables, load_settings

    settings = load_settings(env_file, **overrides)
    export_foreign_variables(env_file)
    for line in settings.warnings:
        click.echo(f"warning: {line}", err=True)
    return settings
