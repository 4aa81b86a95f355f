"""`mnemosine agents`."""

import click

from app.commands.settings import env_file_option, read_settings
from app.errors import BadConfiguration


@click.group()
def agents() -> None:
    """Look after agent files."""


@agents.command("schema")
def agents_schema() -> None:
    """Print the JSON schema of an agent file, for editors."""
    import json

    from app.core.agent_files import schema

    click.echo(json.dumps(schema(), indent=2))


@agents.command("reload")
@env_file_option
def agents_reload(env_file: str) -> None:
    """Have every worker of the server on DATA_DIR read its agents again, and wait for what they say.

    The settings here only say where DATA_DIR is; the workers read the agents that they were started with.
    """
    settings = read_settings(env_file)

    from app.core.reloads import reload_and_wait

    outcomes = reload_and_wait(settings.data_dir)
    refusals = [outcome.refusal for outcome in outcomes if outcome.refusal is not None]
    if refusals:
        some = "" if len(refusals) == len(outcomes) else f" in {len(refusals)} of {len(outcomes)} workers"
        raise BadConfiguration(f"the agents stay as they were{some}: {refusals[0]}")
    serving = sorted({name for outcome in outcomes for name in outcome.agents})
    changed = sorted({name for outcome in outcomes for name in outcome.changed})
    workers = "1 worker" if len(outcomes) == 1 else f"{len(outcomes)} workers"
    click.echo(f"read again by {workers}: {', '.join(serving)}\nchanged: {', '.join(changed) or 'none'}")
