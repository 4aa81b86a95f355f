"""`mnemosine chat`: a talk with an agent of a running server, in the terminal or through a pipe."""

import json
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from app.commands.settings import env_file_option
from app.errors import MnemosineError, NotAuthenticated

if TYPE_CHECKING:
    from app.commands.served import Served

_HELP = "/new begins a new talk, Ctrl-C ends an answer, Ctrl-D leaves"


@click.command()
@click.argument("agent", default="default")
@click.option("--url", help="Address of the server.  [MNEMOSINE_URL, or where `serve` listens by the settings file]")
@click.option("--token", help="API key or JWT; better kept in the environment.  [MNEMOSINE_TOKEN]")
@click.option("--username", help="Sign in as this user; the password is asked for.  [MNEMOSINE_PASSWORD]")
@env_file_option
def chat(agent: str, url: str | None, token: str | None, username: str | None, env_file: str) -> None:
    """Talk to AGENT of a running server.

    Answers are shown while they are made, and one conversation goes on until /new.

    Without a terminal it takes one prompt from standard input and writes the answer, and nothing else, to standard
    output. What is known about an answer (cache, tokens, time, model) goes to standard error.
    """
    from app.commands.served import Served
    from app.config import export_foreign_variables, load_settings

    settings = load_settings(env_file)
    export_foreign_variables(env_file)
    listening = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - only compared
    bracketed = f"[{listening}]" if ":" in listening else listening
    address = url or os.environ.get("MNEMOSINE_URL") or f"http://{bracketed}:{settings.port}"
    at_terminal = sys.stdin.isatty()
    key = token or (None if username else os.environ.get("MNEMOSINE_TOKEN") or None)
    with Served(address, key) as server:
        if key is None:
            _sign_in(server, username, at_terminal=at_terminal)
        try:
            talk = _Talk(server, server.agent(agent))
        except NotAuthenticated as error:
            raise NotAuthenticated(f"{address} does not take this key; make one with: mnemosine create-key") from error
        if at_terminal:
            talk.go_on()
        else:
            # As a shell does it with what a command prints: `echo` ends its line, and nobody asks a newline.
            talk.ask_once(sys.stdin.read().rstrip("\r\n"))


def _sign_in(server: "Served", username: str | None, *, at_terminal: bool) -> None:
    password = os.environ.get("MNEMOSINE_PASSWORD") or None
    if not at_terminal and (username is None or password is None):
        raise click.UsageError(
            "without a terminal a key is needed: export MNEMOSINE_TOKEN=$(mnemosine create-key admin)"
        )
    name = username or click.prompt("Username", default="admin", err=True)
    server.sign_in(name, password or click.prompt("Password", hide_input=True, err=True))


class _Talk:
    """One agent, and one conversation with it that begins with the first prompt."""

    def __init__(self, server: "Served", agent: dict[str, Any]) -> None:
        self._server = server
        self._agent = agent
        self._conversation: str | None = None
        # What is written of an object while it is made is of no use to a reader.
        self._answers_with_text = agent["output_schema"] is None

    def ask_once(self, message: str) -> None:
        """Answer one prompt on standard output. Raises what the server refuses."""
        if not message.strip():
            raise click.UsageError("there was no prompt on standard input")
        try:
            self._answer(message, shown_while_made=False)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None

    def go_on(self) -> None:
        """Ask for prompts until the user leaves."""
        with suppress(ImportError):  # `input` then knows the arrows, and what was typed before
            import_module("readline")
        model = self._agent["model"]
        note = " (built in: it says what you said, and asks no language model)" if model == "offline" else ""
        _aside(f"{self._agent['name']} on {model}{note} at {self._server.url}; {_HELP}")
        while True:
            try:
                message = input("> ").strip()
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                click.echo()
                _aside(_HELP)
                continue
            if message == "/new":
                self._conversation = None
                _aside("a new talk")
            elif message.startswith("/"):
                _aside(_HELP)
            elif message:
                self._take_turn(message)

    def _take_turn(self, message: str) -> None:
        try:
            if self._conversation is None:
                self._conversation = self._server.begin_conversation()
            self._answer(message, shown_while_made=True)
        except KeyboardInterrupt:
            click.echo()
            _aside("stopped; the server forgets this turn")
        except MnemosineError as error:
            click.echo(f"mnemosine: {error.detail}", err=True)

    def _answer(self, message: str, *, shown_while_made: bool) -> None:
        prompt = {"message": message, "agent": self._agent["name"], "conversation_id": self._conversation}
        shown = shown_while_made and self._answers_with_text
        with self._server.asking(prompt) as (cache, events):
            for event in events:
                if event.name == "delta" and shown:
                    click.echo(_printable(event.data["text"]), nl=False)
                elif event.name == "tool_start" and shown_while_made:
                    _aside(f"[{event.data['tool']}]")
                elif event.name == "done":
                    answer = event.data["response"]
                    text = answer if isinstance(answer, str) else json.dumps(answer, indent=2, ensure_ascii=False)
                    click.echo("" if shown else _printable(text))
                    _aside(_about(cache, event.data))


def _about(cache: str, done: dict[str, Any]) -> str:
    usage = done["usage"]
    tokens = f"{usage['input_tokens']} + {usage['output_tokens']} tokens"
    return f"{cache} · {tokens} · {done['processing_time_ms']:.0f} ms · {done['model']}"


def _printable(text: str) -> str:
    """`text` for a terminal, which must not obey what a model writes; a pipe gets every character."""
    if not sys.stdout.isatty():
        return text
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "�" for sign in text)


def _aside(text: str) -> None:
    """`text` on standard error, dim where that is a terminal and nobody set `NO_COLOR`."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty()
    click.echo(text if plain else click.style(text, dim=True), err=True, color=not plain)
