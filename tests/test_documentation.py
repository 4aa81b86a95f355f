"""What README and docs say is so: their blocks run, their links lead somewhere, and nothing of the product is missing.

A block in `sh` or `python` runs against a served application, those of a page in order and in one folder. One that
cannot has `<!-- not run: reason -->` above it. `text` is what is only looked at.
"""

import json
import re
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import yaml

from app.cli import cli
from app.config import Settings
from app.core.agent_files import read_agent_files
from app.errors import MnemosineError
from docs.generate import openapi, put_together, walk
from docs.loads import foreign_loads
from tests.pages import RUN, blocks, is_runnable, run_blocks
from tests.process import ROOT, ServerProcess, serving

PASSWORD = "a password for tests"
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "ARCHITECTURE.md",
        ROOT / "benchmarks" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)
WRITTEN_LATER = {ROOT / "benchmarks" / "RESULTS.md"}  # by `make bench`
LANGUAGES = {*RUN, "yaml", "json", "env", "text", "toml", "ini", "nginx", "dockerfile", "promql", "sql", "http"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: str) -> set[str]:
    """What a link may name on a page, as GitHub makes it of a heading."""
    without_blocks = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+)$", without_blocks, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead_links(path: Path, page: str) -> list[str]:
    """Every link of a page to a file, or a heading, that is not there."""
    text = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL))
    found: list[str] = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if target in WRITTEN_LATER:
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target.read_text())):
            found.append(link)
    return found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_and_anchors_lead_somewhere(path: Path) -> None:
    assert dead_links(path, path.read_text()) == []


def test_a_dead_link_is_found() -> None:
    page = "# A title\n[a](README.md) [b](#a-title) [c](nowhere.md) [d](#nothing) `[e](no.md)`"
    assert dead_links(ROOT / "CHANGELOG.md", page.replace("#a-title", "README.md#start")) == ["nowhere.md", "#nothing"]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_says_what_it_is_and_is_well_formed(path: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(path.read_text())):
        where = f"line {block.line}"
        assert block.language in LANGUAGES, f"{where}: say what it is, with `text` for what is only looked at"
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "python":
            compile(block.text, where, "exec")
        elif block.language == "yaml":
            data = yaml.safe_load(block.text)
            if "instructions" in data:
                folder = tmp_path / str(number)
                folder.mkdir()
                (folder / "agent.yaml").write_text(block.text)
                read_agent_files(
                    folder, default_model="offline", allowed_capabilities=("MCP", "MCP:command", "WebSearch")
                )
        elif block.language == "env":
            for line in block.text.splitlines():
                assert re.match(r"(#.*|[A-Z][A-Z0-9_]*=.*|)$", line), f"{where}: {line!r} is no setting"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    """The agents of `mnemosine init`, served with the offline model."""
    folder = tmp_path_factory.mktemp("served")
    settings = {
        "ADMIN_PASSWORD": PASSWORD,
        "AGENTS_DIR": str(ROOT / "app/commands/starter/agents"),
        "AGENTS": "app.commands.starter.desk:desk",
    }
    with serving(folder, **settings) as server:
        server.wait_for("/readyz")
        server.sign_in("admin", PASSWORD)
        yield server


# An example's own page runs in its own test, on the server that the page describes.
RUNNABLE = [path for path in PAGES if is_runnable(path) and ROOT / "examples" not in path.parents]


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_the_blocks_of_a_page_run(path: Path, served: ServerProcess, tmp_path: Path) -> None:
    run_blocks(path, served, tmp_path, data=Path(served.printed.name).parent / "data", PASSWORD=PASSWORD)


def test_every_page_is_in_the_index_and_in_the_menu_of_the_site() -> None:
    index, menu = (ROOT / "docs" / "index.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    pages = [name_of(path) for path in (ROOT / "docs").rglob("*.md") if path.name != "index.md"]
    assert len(pages) > 20
    assert [page for page in pages if f"({page.removeprefix('docs/')}" not in index or f"{page}\n" not in menu] == []


def test_the_site_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    mkdocs = ROOT / ".venv-docs" / "bin" / "mkdocs"
    if not mkdocs.exists():
        pytest.skip("`make docs` installs what builds the site")
    pages, site = tmp_path / "pages", tmp_path / "site"
    put_together(pages)
    settings = (ROOT / "mkdocs.yml").read_text().replace("docs_dir: .venv-docs/pages", f"docs_dir: {pages}")
    (tmp_path / "mkdocs.yml").write_text(settings)
    command = [str(mkdocs), "build", "--strict", "--quiet", "--site-dir", str(site)]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert len(list(site.rglob("*.html"))) > 20
    assert foreign_loads(site) == []


def test_what_a_page_loads_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="https://cdn.example/a.css"><link rel="canonical" href="https://own.example/">'
        '<script src="//cdn.example/b.js"></script><script src="own.js"></script><a href="https://other.example">b</a>'
        '<style>@import "https://cdn.example/c.css";</style><img src="HTTP://cdn.example/d.png" alt="">'
    )
    (tmp_path / "own.css").write_text("p { background: url(https://cdn.example/e.png) } b { src: url(f.woff) }")
    assert foreign_loads(tmp_path) == [
        "a.html: //cdn.example/b.js",
        "a.html: HTTP://cdn.example/d.png",
        "a.html: https://cdn.example/a.css",
        "a.html: https://cdn.example/c.css",
        "own.css: https://cdn.example/e.png",
    ]


def test_the_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    named = set(re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"serve", "test"} <= named <= targets


REFERENCE = ROOT / "docs" / "reference"
RENEW = "run: python -m docs.generate"


def test_every_setting_has_its_place() -> None:
    page = (REFERENCE / "settings.md").read_text()
    assert [name for name in Settings.model_fields if f"## {name.upper()}\n" not in page] == [], RENEW


def test_every_route_has_its_place() -> None:
    page = (REFERENCE / "http.md").read_text()
    routes = [f"{method.upper()} {path}" for path, methods in openapi()["paths"].items() for method in methods]
    assert len(routes) > 20
    assert [route for route in routes if f"## {route}\n" not in page] == [], RENEW


def test_every_command_and_option_has_its_place() -> None:
    page = (REFERENCE / "cli.md").read_text()
    for path, command in walk(cli, ("mnemosine",)):
        section = page.partition(f"## {' '.join(path)}\n")[2].partition("\n## ")[0]
        if hasattr(command, "commands"):
            continue
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert section, f"{' '.join(path)}: {RENEW}"
        assert [option for option in options if option not in section] == [], RENEW


def test_every_error_has_its_place() -> None:
    page = (REFERENCE / "errors.md").read_text()

    def codes(kind: type[MnemosineError]) -> Iterator[str]:
        yield kind.code
        for below in kind.__subclasses__():
            if below.__module__ == "app.errors":
                yield from codes(below)

    assert [code for code in codes(MnemosineError) if f"| `{code}` |" not in page] == []


def test_every_metric_has_its_place(served: ServerProcess) -> None:
    page = (REFERENCE / "metrics.md").read_text()
    names = set(re.findall(r"^# TYPE (\w+) ", served.get("/metrics").text, re.MULTILINE))
    assert len(names) > 20
    assert sorted(name for name in names if f"`{name}`" not in page and f"`{name}_total`" not in page) == []
