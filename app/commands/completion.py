"""`mnemosine completion`."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    r"""Print the script that completes commands in SHELL.

    \b
    bash: mnemosine completion bash > ~/.local/share/bash-completion/completions/mnemosine
    zsh:  mnemosine completion zsh > a folder of your $fpath, as _mnemosine
    fish: mnemosine completion fish > ~/.config/fish/completions/mnemosine.fish
    """
    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(context.find_root().command, {}, "mnemosine", "_MNEMOSINE_COMPLETE").source())
