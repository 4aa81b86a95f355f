"""`mnemosine agents`."""

import click

from app.commands.settings import env_file_option, read_settings


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
    """Check the agents, then have every running worker of DATA_DIR read them again within a second."""
    import time

    settings = read_settings(env_file)

    from app.runtime import RELOAD_STAMP, load_agents

    names = ", ".join(sorted(agent.name for agent in load_agents(settings)))
    (settings.data_dir / RELOAD_STAMP).write_text(f"0 {time.time_ns()}", encoding="utf-8")
    click.echo(f"told the workers to read: {names}")
