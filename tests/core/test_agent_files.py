"""Agent files: what is refused, and that the refusal names file, line and cure."""

from pathlib import Path

import pytest

from app.core.agent_files import read_agent_files
from app.errors import BadConfiguration


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("instructions: a\nmodel: [", 2, "not YAML"),
        ("- a\n", 1, "keys and values"),
        ("\ninstrutions: a\n", 2, "did you mean 'instructions'?"),
        ("instructions: a\ninstructions: b\n", 2, "stands twice"),
        ("instructions: a\nmodel: gpt-5\n", 2, "provider:model"),
        ("model_settings:\n  temprature: 0\n", 2, "did you mean 'temperature'?"),
        ("model_settings:\n  temperature: warm\n", 2, "model_settings.temperature"),
        ("metadata:\n  mnemosine:\n    cache:\n      scope: all\n", 4, "metadata.mnemosine.cache.scope"),
        ("metadata:\n  mnemosine:\n    max_concurency: 1\n", 3, "max_concurency"),
        ("capabilities:\n  - LocalWorkspace: /\n", 2, "ALLOWED_CAPABILITIES=LocalWorkspace"),
        ("capabilities:\n  - MCP: {local: ./server.py}\n", 2, "ALLOWED_CAPABILITIES=MCP:command"),
        (
            "capabilities:\n  - PrefixTools: {prefix: a, capability: {LocalWorkspace: /}}\n",
            2,
            "ALLOWED_CAPABILITIES=LocalWorkspace",
        ),
        ("capabilities:\n  - {name: LocalWorkspace, arguments: [/]}\n", 2, "ALLOWED_CAPABILITIES=LocalWorkspace"),
    ],
)
def test_a_broken_file_is_refused_with_file_line_and_cure(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(BadConfiguration) as refused:
        read_agent_files(tmp_path, default_model="offline")
    assert refused.value.detail.startswith(f"{path}, line {line}: ")
    assert said in refused.value.detail


def test_a_broken_json_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n "model": offline\n}')
    with pytest.raises(BadConfiguration, match="line 2: this is not JSON"):
        read_agent_files(tmp_path, default_model="offline")


def test_a_changed_agent_has_a_new_revision_and_an_equal_one_the_same(tmp_path: Path) -> None:
    def revision(text: str) -> str:
        (tmp_path / "a.yaml").write_text(text)
        (agent,) = read_agent_files(tmp_path, default_model="offline")
        return agent.revision

    first = revision("instructions: a\n")
    assert revision("# the same\ninstructions: a\n") == first
    assert revision("instructions: b\n") != first
    assert revision("instructions: a\nmodel_settings: {temperature: 1}\n") != first
    assert revision("instructions: a\noutput_schema: {type: object, properties: {}, title: T}\n") != first
