"""`mnemosine init`: a folder to start from."""

from pathlib import Path

import click

from app.errors import BadConfiguration

_STARTER = Path(__file__).parent / "starter"
# What each file is called in the package, since some names mean something to git and to test runners there.
_FILES = {
    "agents/helper.yaml": "agents/helper.yaml",
    "agents/ticket.yaml": "agents/ticket.yaml",
    "desk.py": "desk.py",
    "test_agents.py": "test_agents.py",
    ".env": "env",
    ".gitignore": "gitignore",
}


@click.command()
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(file_okay=False, path_type=Path))
def init(folder: Path) -> None:
    """Write a folder to start from.

    Three agents, a test for them, and an .env with comments, in DIR.

    What is there already stays as it is, and is named.
    """
    skipped: list[str] = []
    for name, source in _FILES.items():
        target = folder / name
        if _write(target, (_STARTER / source).read_text(encoding="utf-8"), secret=name == ".env"):
            click.echo(f"wrote    {target}")
        else:
            skipped.append(name)
            click.echo(f"skipped  {target}, which is there already")
    if ".env" in skipped:
        click.echo("\nYour .env has to name the agents: AGENTS_DIR=./agents and AGENTS=desk:desk")
    there = "" if folder == Path() else f"  cd {folder}\n"
    click.echo(
        f"\nNext:\n{there}"
        "  mnemosine serve                the first start prints the administrator's password\n"
        "  mnemosine chat desk            in another terminal\n"
        "  python -m unittest             the test of the agents; it asks no model\n"
        "Without a provider's key in .env the built-in offline model answers, and says so."
    )


def _write(path: Path, text: str, *, secret: bool) -> bool:
    """Whether `path` was made; `False` where something of that name is there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # `x`: made only if nobody else has, at this very moment too.
        with path.open("x", encoding="utf-8") as file:
            if secret:
                path.chmod(0o600)
            file.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise BadConfiguration(
            f"{path} cannot be written: {error.strerror}; example: mnemosine init my-agents"
        ) from error
    return True
