"""`mnemosine init`, `chat` and `completion`, as somebody meets them in the first hour."""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.process import ServerProcess, free_port, providing, running, serving
from tests.test_cli import environment, run

PASSWORD = "a password for tests"


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starter") / "mine"
    done = run(folder.parent, "init", "mine")
    assert done.returncode == 0, done.stderr
    assert "mnemosine serve" in done.stdout
    return folder


@pytest.fixture(scope="module")
def served(starter: Path) -> Generator[ServerProcess]:
    """`mnemosine serve` in the starter folder, with no provider's key."""
    command = [sys.executable, "-c", f"import os, runpy; os.chdir({str(starter)!r}); runpy.run_module('app')"]
    port = free_port()
    with running(
        [*command, "serve", "--port", str(port)],
        starter,
        port=port,
        ADMIN_PASSWORD=PASSWORD,
        PYTHONPATH=environment()["PYTHONPATH"],
    ) as server:
        server.wait_for("/readyz")
        server.sign_in("admin", PASSWORD)
        yield server


def chat(
    folder: Path, server: ServerProcess, *arguments: str, stdin: str, **more: str
) -> subprocess.CompletedProcess[str]:
    known = {"MNEMOSINE_URL": server.url, "MNEMOSINE_PASSWORD": PASSWORD}
    return run(folder, "chat", "--username", "admin", *arguments, stdin=stdin, **known | more)


def test_init_touches_nothing_that_is_there(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=9000\n")
    (tmp_path / "agents").mkdir()
    done = run(tmp_path, "init")
    assert done.returncode == 0
    assert (tmp_path / ".env").read_text() == "PORT=9000\n"
    assert "skipped  .env, which is there already" in done.stdout
    assert "AGENTS_DIR=./agents" in done.stdout
    again = run(tmp_path, "init")
    assert again.returncode == 0
    assert "wrote" not in again.stdout


def test_init_says_why_a_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path, "init", "file/below")
    assert done.returncode == 2
    assert done.stderr.startswith("mnemosine: file/below/")
    assert "Traceback" not in done.stderr


def test_the_settings_file_of_the_starter_is_for_its_owner_alone(starter: Path) -> None:
    assert (starter / ".env").stat().st_mode & 0o777 == 0o600
    assert ".env" in (starter / ".gitignore").read_text().split()


def test_the_test_of_the_starter_passes_and_can_fail(starter: Path) -> None:
    command = [sys.executable, "-m", "unittest"]
    done = subprocess.run(command, cwd=starter, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Ran 2 tests" in done.stderr
    broken = starter / "agents" / "broken.yaml"
    broken.write_text("instructions: [\n")
    try:
        done = subprocess.run(command, cwd=starter, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 1
    finally:
        broken.unlink()


def test_serve_in_the_starter_answers_offline_and_says_so(served: ServerProcess) -> None:
    assert "model      offline (built in, no network; set OPENAI_API_KEY" in served.output()
    names = [agent["name"] for agent in served.get("/api/v1/agents").json()]
    assert names == ["default", "desk", "helper", "ticket"]
    assert "wants dependencies" not in served.output(), "nothing of the starter is to be mended"
    [desk] = [agent for agent in served.get("/api/v1/agents").json() if agent["name"] == "desk"]
    assert desk["cache"]["ttl"] == 60, "what its tool looked up is kept"
    assert "no language model was asked" in served.prompt("Hello!").json()["response"]


def test_a_prompt_through_a_pipe_gets_the_answer_and_nothing_else(starter: Path, served: ServerProcess) -> None:
    first, again = [chat(starter, served, "helper", stdin="When are you open?\n") for _ in range(2)]
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("This is Mnemosine's built-in offline model")
    assert first.stdout == again.stdout
    assert re.fullmatch(r"MISS · \d+ \+ \d+ tokens · \d+ ms · offline\n", first.stderr)
    assert again.stderr.startswith("HIT · ")


def test_an_object_is_written_as_json(starter: Path, served: ServerProcess) -> None:
    done = chat(starter, served, "ticket", stdin="It is broken!")
    assert '"priority": "low"' in done.stdout


def test_a_key_signs_in(starter: Path, served: ServerProcess) -> None:
    key = served.make_key()
    done = run(starter, "chat", stdin="Hello!", MNEMOSINE_URL=served.url, MNEMOSINE_TOKEN=key)
    assert done.returncode == 0, done.stderr
    assert "Hello!" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "stdin", "changed", "status", "line"),
    [
        (("helpr",), "Hello!", {}, 1, "there is no agent 'helpr'; did you mean 'helper'?"),
        ((), "Hello!", {"MNEMOSINE_PASSWORD": "wrong"}, 1, "the username or the password is wrong"),
        (("--token", "mn_x_y"), "Hello!", {}, 1, "does not take this key; make one with: mnemosine create-key"),
        ((), "Hello!", {"MNEMOSINE_URL": "http://127.0.0.1:1"}, 1, "nothing answers at http://127.0.0.1:1; start it"),
        (("--url", "localhost:8000"), "Hello!", {}, 2, "is no address; example: http://127.0.0.1:8000"),
        ((), " \n", {}, 2, "there was no prompt on standard input"),
        ((), "Hello!", {"MNEMOSINE_PASSWORD": ""}, 2, "export MNEMOSINE_TOKEN=$(mnemosine create-key admin)"),
    ],
    ids=["agent", "password", "key", "no server", "address", "no prompt", "nobody"],
)
def test_what_goes_wrong_is_one_line_with_its_status(
    starter: Path,
    served: ServerProcess,
    arguments: tuple[str, ...],
    stdin: str,
    changed: dict[str, str],
    status: int,
    line: str,
) -> None:
    done = chat(starter, served, *arguments, stdin=stdin, **changed)
    assert done.returncode == status, done.stderr
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


class Terminal:
    """`mnemosine` at a terminal of its own; `shown` is all that has appeared on it."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        self._master, slave = os.openpty()
        # `login_tty` makes it the terminal of the process, so that Ctrl-C is a signal there; tests that run in the
        # background of a shell would hand down that it is ignored.
        command = [sys.executable, "-m", "app", *arguments]
        program = (
            "import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL);"
            f"os.login_tty(0); os.execv({command[0]!r}, {command!r})"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment(TERM="xterm", **settings),
        )  # fmt: skip
        os.close(slave)
        self.shown = ""
        self._seen = 0

    def wait_for(self, text: str) -> None:
        """Read until `text` has appeared after what was waited for last."""
        deadline = time.monotonic() + 60
        while text not in self.shown[self._seen :]:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._master], [], [], 1)[0]:
                try:
                    self.shown += os.read(self._master, 65536).decode(errors="replace")
                except OSError as error:  # Linux says so at the end of a terminal
                    raise AssertionError(self.shown) from error
        self._seen = self.shown.index(text, self._seen) + len(text)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


@contextmanager
def terminal(folder: Path, *arguments: str, **settings: str) -> Generator[Terminal]:
    opened = Terminal(folder, *arguments, **settings)
    try:
        yield opened
    finally:
        opened.close()


def test_a_talk_goes_on_until_ctrl_d(starter: Path, served: ServerProcess) -> None:
    with terminal(starter, "chat", "--url", served.url) as talk:
        talk.wait_for("Username [admin]: ")
        talk.type("\n")
        talk.wait_for("Password: ")
        talk.type(PASSWORD + "\n")
        talk.wait_for("asks no language model")
        talk.wait_for("> ")
        talk.type("My name is Ada.\n")
        talk.wait_for("You said: 'My name is Ada.'")
        talk.wait_for("\x1b[2mMISS · ")
        talk.wait_for("> ")
        talk.type("\x03")
        talk.wait_for("Ctrl-D leaves")
        talk.wait_for("> ")
        talk.type("\x04")
        assert talk.process.wait(30) == 0
        assert PASSWORD not in talk.shown
    (conversation,) = served.get("/api/v1/conversations").json()["items"]
    assert conversation["message_count"] == 2


def test_no_color_is_obeyed_and_ctrl_c_ends_the_answer_alone(tmp_path: Path) -> None:
    with (
        providing() as provider,
        serving(
            tmp_path,
            ADMIN_PASSWORD=PASSWORD,
            OPENAI_API_KEY="any",
            OPENAI_BASE_URL=provider.base_url,
            DEFAULT_MODEL="openai-chat:fake",
        ) as server,
    ):
        server.wait_for("/readyz")
        server.sign_in("admin", PASSWORD)
        settings = {"MNEMOSINE_TOKEN": server.make_key(), "NO_COLOR": "1"}
        with terminal(tmp_path, "chat", "--url", server.url, **settings) as talk:
            talk.wait_for("> ")
            talk.type("fault:hang\n")
            provider.wait_until(lambda stats: stats["in_flight"] > 0)
            talk.type("\x03")
            talk.wait_for("stopped")
            provider.wait_until(lambda stats: stats["in_flight"] == 0, timeout_s=30)
            talk.wait_for("> ")
            talk.type("nonce:after\n")
            talk.wait_for("nonce:after")
            talk.wait_for("tokens")
            talk.wait_for("> ")
            assert "\x1b[2m" not in talk.shown
            talk.type("\x04")
            assert talk.process.wait(30) == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(tmp_path: Path, shell: str) -> None:
    done = run(tmp_path, "completion", shell)
    assert done.returncode == 0
    assert "_MNEMOSINE_COMPLETE" in done.stdout
    words = {"COMP_WORDS": "mnemosine create-", "COMP_CWORD": "1" if shell != "fish" else "create-"}
    offered = run(tmp_path, _MNEMOSINE_COMPLETE=f"{shell}_complete", **words).stdout
    assert "create-key" in offered
    assert "create-user" in offered


def test_an_unknown_command_is_status_2_and_names_the_nearest(tmp_path: Path) -> None:
    done = run(tmp_path, "sevre")
    assert done.returncode == 2
    assert "serve" in done.stderr
