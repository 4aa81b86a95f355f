"""What stops somebody in the first hour says in one line what to do."""

import ast
import inspect
import os
import socket
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic_ai import exceptions
from pydantic_ai.providers import infer_provider_class

from app.core import model_providers
from app.core.agent_code import load_agent
from app.core.models import Models, provider_error
from app.errors import BadConfiguration
from tests.process import ROOT, free_port


def refusal_of(model: str) -> str:
    with pytest.raises(BadConfiguration) as refused:
        Models().get(model)
    return refused.value.detail


def test_an_unknown_provider_names_the_nearest() -> None:
    assert "did you mean openai-chat:gpt-5-mini?" in refusal_of("openai-chta:gpt-5-mini")
    assert "did you mean anthropic:claude" in refusal_of("antropic:claude")
    assert "valid: openai-chat:gpt-5-mini, offline" in refusal_of("qqqqqq:x")


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert "OPENAI_API_KEY" in refusal_of("openai-chat:gpt-5-mini")


@pytest.mark.parametrize(
    ("model", "package", "module"),
    [
        ("anthropic:claude-sonnet-4-5", "mnemosine[anthropic]", "anthropic"),
        ("google-cloud:gemini-2.5-pro", "mnemosine[google]", "google"),
        ("xai:grok-4", "pydantic-ai-slim[xai]", "xai"),
    ],
)
def test_a_missing_package_is_one_to_install(
    model: str, package: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if it were not installed, in an environment that may have it.
    for name in [
        name
        for name in sys.modules
        if name.startswith((f"pydantic_ai.providers.{module}", f"pydantic_ai.models.{module}"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("anthropic", "google.genai", "xai_sdk"):
        monkeypatch.setitem(sys.modules, name, None)
    assert f"pip install '{package}'" in refusal_of(model)


def test_a_wrong_model_name_and_a_wrong_key_say_what_to_mend() -> None:
    unknown = provider_error(exceptions.ModelNotFoundError("gpt6-luna", "no such model"), provider="openai")
    assert unknown is not None
    assert str(unknown) == "the model provider openai does not know the model 'gpt6-luna'; did you mean 'gpt-6-luna'?"
    own = provider_error(exceptions.ModelNotFoundError("llama3.2", "no such model"), provider="openai")
    assert str(own) == "the model provider openai does not know the model 'llama3.2'"
    refused = provider_error(exceptions.ModelAuthenticationError("gpt-5-mini", "no"), provider="openai")
    assert "correct OPENAI_API_KEY" in str(refused)


def test_an_agent_that_cannot_be_made_is_shown_in_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "wants_a_key.py").write_text(
        "from pydantic_ai import Agent\n\nhelper = Agent('openai-chat:gpt-5-mini')\n"
    )
    with pytest.raises(BadConfiguration) as refused:
        load_agent("wants_a_key:helper", default_model="offline")
    assert f"{tmp_path / 'wants_a_key.py'}, line 3: UserError: Set the `OPENAI_API_KEY`" in refused.value.detail


def test_an_agent_in_python_is_known_by_its_instructions_unless_they_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "with_instructions.py").write_text(
        "from pydantic_ai import Agent\n\n"
        "one = Agent(instructions=' Be brief.\\n')\ntwo = Agent(instructions=['Be brief.', 'Be kind.'])\n"
        "none = Agent()\ncomputed = Agent(instructions='Be brief.')\ncomputed.instructions(lambda: 'It is noon.')\n"
    )
    told = {
        name: load_agent(f"with_instructions:{name}", default_model="offline").instructions
        for name in ("one", "two", "none", "computed")
    }
    assert told == {"one": "Be brief.", "two": "Be brief.\n\nBe kind.", "none": None, "computed": None}


def test_dependencies_that_nobody_makes_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "wants_deps.py").write_text(
        "from pydantic_ai import Agent\n\n"
        "without = Agent(deps_type=dict)\nmade = Agent(deps_type=dict)\nmade_deps = dict\n"
        "plain = Agent()\n"
    )
    load_agent("wants_deps:made", default_model="offline")
    load_agent("wants_deps:plain", default_model="offline")
    assert caplog.messages == []
    load_agent("wants_deps:without", default_model="offline")
    assert "no without_deps beside it" in caplog.text


def test_a_module_with_the_ending_of_its_file_is_named_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "with_ending.py").write_text("from pydantic_ai import Agent\n\nhelper = Agent()\n")
    with pytest.raises(BadConfiguration, match=r"named without \.py: with_ending:helper$"):
        load_agent("with_ending.py:helper", default_model="offline")


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATA_DIR": str(folder / "data"), **settings}
    program = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def serve(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "serve", *arguments, **{"PORT": str(free_port()), **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"DEFAULT_MODEL": "openai-chta:gpt-5-mini"},
            "cannot work: there is no model provider 'openai-chta'; did you mean openai-chat:gpt-5-mini?",
        ),
        ({"DEFAULT_MODEL": "deepseek:deepseek-flash"}, "DEEPSEEK_API_KEY is not set; set it in the environment or"),
        ({"DEFAULT_MODEL": "xai:grok-4", "XAI_API_KEY": "any"}, "pip install 'pydantic-ai-slim[xai]'"),
    ],
)
def test_a_default_model_that_cannot_work_stops_the_start(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    if "xai" in said and find_spec("xai_sdk") is not None:
        pytest.skip("the package is installed")
    done = serve(tmp_path, "--port", "0", **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"DEFAULT_MODEL={settings['DEFAULT_MODEL']} cannot work: " in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "data" / "mnemosine.db").exists()


def test_a_model_that_cannot_work_is_said_without_starting(tmp_path: Path) -> None:
    checked = run(tmp_path, "check-config", DEFAULT_MODEL="openai-chat:gpt-5-mini")
    assert checked.returncode == 2
    assert "cannot work: OPENAI_API_KEY or OPENAI_BASE_URL is not set" in checked.stderr
    assert "DEFAULT_MODEL" in checked.stdout
    doctor = run(tmp_path, "doctor", DEFAULT_MODEL="openai-chat:gpt-5-mini")
    assert doctor.returncode == 1
    assert "failure: DEFAULT_MODEL=openai-chat:gpt-5-mini\n  it cannot work: OPENAI_API_KEY" in doctor.stdout


def test_a_default_model_that_no_agent_needs_stops_nothing(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    agents.mkdir()
    chosen = {"AGENTS_DIR": str(agents), "DEFAULT_MODEL": "deepseek:deepseek-flash"}
    (agents / "default.yaml").write_text("model: offline\n")
    assert run(tmp_path, "check-config", **chosen).returncode == 0
    (agents / "other.yaml").write_text("model: antropic:claude\n")
    refused = run(tmp_path, "check-config", **chosen)
    assert refused.returncode == 2
    assert f"the model antropic:claude of agent 'other' ({agents / 'other.yaml'}) cannot work" in refused.stderr
    assert "did you mean anthropic:claude?" in refused.stderr


def test_the_known_providers_are_those_of_the_library() -> None:
    tree = ast.parse(inspect.getsource(infer_provider_class))
    theirs = {
        str(name.value)
        for case in ast.walk(tree)
        if isinstance(case, ast.match_case)
        for name in ast.walk(case.pattern)
        if isinstance(name, ast.Constant)
    }
    assert theirs == set(model_providers._VARIABLES)  # pyright: ignore[reportPrivateUsage]


def test_what_is_refused_early_would_be_refused_late(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = model_providers._VARIABLES  # pyright: ignore[reportPrivateUsage]
    for names in variables.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    refused = [provider for provider in variables if model_providers.fault_of(f"{provider}:some-model")]
    assert {"openai-chat", "anthropic", "deepseek", "ollama", "xai"} <= set(refused)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of them is deprecated
        for provider in refused:
            refusal_of(f"{provider}:some-model")
    for provider in refused:
        for name in variables[provider]:
            with monkeypatch.context() as patch:
                patch.setenv(name, "http://there")
                fault = model_providers.fault_of(f"{provider}:some-model")
                assert fault is None or "package" in fault[0]


def test_a_reference_without_an_attribute_is_shown_as_it_was_written(tmp_path: Path) -> None:
    done = serve(tmp_path, "my_module")
    assert done.returncode == 2
    assert "got 'my_module'; example: AGENTS=" in done.stderr


def test_a_taken_port_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve(tmp_path, "--port", str(port))
    assert done.returncode == 2
    assert f"PORT {port} on 127.0.0.1 is taken by another program" in done.stderr
    assert not (tmp_path / "data" / "mnemosine.db").exists()


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = serve(tmp_path, DATA_DIR=str(tmp_path / "file" / "data"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"mnemosine: DATA_DIR {tmp_path / 'file' / 'data'}")


def test_a_database_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = serve(tmp_path, "--port", "0", DATABASE_URL=f"postgresql://ada:canary@127.0.0.1:{port}/mnemosine")
    assert done.returncode == 1
    assert done.stderr == (
        f"mnemosine: DATABASE_URL: PostgreSQL at 127.0.0.1:{port} does not answer; start it, or correct host and port\n"
    )


def test_a_database_that_does_not_exist_is_named(postgres_url: str, tmp_path: Path) -> None:
    done = serve(tmp_path, "--port", "0", DATABASE_URL=f"{postgres_url}_not")
    assert done.returncode == 1
    assert f"has no database {postgres_url.rpartition('/')[2]}_not; create it" in done.stderr
