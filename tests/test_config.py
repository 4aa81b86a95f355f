"""Settings: what is read, what is refused and how it is said, and that no secret is shown."""

import os
from pathlib import Path

import pytest

from app.config import Settings, describe, example_env, export_foreign_variables, load_settings, mask_url, meanings
from app.errors import BadConfiguration

REPOSITORY = Path(__file__).parent.parent
PROVIDER_KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY")
CANARY = "canary-7f3a"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*Settings.model_fields, *PROVIDER_KEYS):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(**overrides: object) -> str:
    with pytest.raises(BadConfiguration) as caught:
        load_settings(None, **overrides)
    return caught.value.detail


def test_defaults_are_those_of_the_contract() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)
    assert (settings.agent_pool_size, settings.cache_ttl) == (10, 3600)
    assert (settings.db_pool_size, settings.db_max_overflow) == (20, 30)
    assert settings.enable_response_compression
    assert settings.redis_url is None
    assert settings.default_model == "offline"
    assert settings.database_url == "sqlite+aiosqlite:///data/mnemosine.db"


def test_command_line_wins_over_environment_over_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=1001\nWORKERS=2\ncache_ttl=60\n")
    monkeypatch.setenv("PORT", "1002")
    monkeypatch.setenv("workers", "3")
    settings = load_settings(port=1003)
    assert (settings.port, settings.workers, settings.cache_ttl) == (1003, 3, 60)
    origins = {row.name: row.origin for row in describe(settings)}
    assert origins["PORT"] == "command line"
    assert origins["WORKERS"] == "environment"
    assert origins["CACHE_TTL"] == ".env"
    assert origins["HOST"] == "default"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "")
    monkeypatch.setenv("PORT", "")
    settings = load_settings()
    assert settings.redis_url is None
    assert settings.port == 8000


def test_settings_do_not_change() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("key", "model"),
    [("OPENAI_API_KEY", "openai-chat:gpt-5-mini"), ("ANTHROPIC_API_KEY", "anthropic:claude-sonnet-4-5")],
)
def test_a_provider_key_chooses_the_model(monkeypatch: pytest.MonkeyPatch, key: str, model: str) -> None:
    monkeypatch.setenv(key, "sk-1")
    settings = load_settings()
    assert settings.default_model == model
    assert next(row.origin for row in describe(settings) if row.name == "DEFAULT_MODEL") == f"default, as {key} is set"
    assert load_settings(default_model="offline").default_model == "offline"


def test_foreign_lines_of_the_file_reach_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://here")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    (tmp_path / ".env").write_text("OPENAI_API_KEY=sk-1\nOPENAI_BASE_URL=http://there\nPORT=9\n")
    assert export_foreign_variables() == ("OPENAI_API_KEY",)
    assert os.environ["OPENAI_API_KEY"] == "sk-1"
    assert os.environ["OPENAI_BASE_URL"] == "http://here"
    assert "PORT" not in os.environ


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
        ("sqlite+aiosqlite:////tmp/a.db", "sqlite+aiosqlite:////tmp/a.db"),
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u@h/d", "postgresql+asyncpg://u@h/d"),
        ("postgresql+asyncpg://u@h/d", "postgresql+asyncpg://u@h/d"),
    ],
)
def test_a_database_url_may_leave_its_driver_out(given: str, driver: str) -> None:
    assert load_settings(None, database_url=given).database_url == driver


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("port", "abc", "got 'abc'"),
        ("port", 65536, "less than or equal to 65535"),
        ("workers", 0, "greater than or equal to 1"),
        ("host", "http://example.org", "without scheme"),
        ("debug", "perhaps", "boolean"),
        ("secret_key", "short", "at least 32 bytes, has 5"),
        ("admin_password", "short", "8 to 1,024 bytes"),
        ("database_url", "mysql://u:p@h/d", "sqlite:/// or postgresql://"),
        ("database_url", "sqlite://a.db", "three slashes"),
        ("redis_url", "http://h", "redis://"),
        ("allowed_origins", "*", "exact origins"),
        ("allowed_origins", "https://a.example/path", "without a path"),
        ("allowed_hosts", "https://a.example", "without scheme"),
        ("trusted_proxies", "0.0.0.0/0", "not trust every address"),
        ("trusted_proxies", "proxy", "IP addresses"),
        ("agents", "module_without_attribute", "package.module:attribute"),
        ("default_model", "gpt-5", "provider:model"),
        ("cache_ttl", 0, "greater than or equal to 1"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("admin_username", "a b", "pattern"),
    ],
)
def test_a_bad_setting_is_one_line_with_name_problem_and_example(name: str, value: object, problem: str) -> None:
    line = refusal(**{name: value})
    assert line.startswith((f"{name.upper()} must ", f"{name.upper()} needs "))
    assert problem in line
    assert f"example: {name.upper()}=" in line
    assert "\n" not in line


def test_several_bad_settings_are_counted() -> None:
    assert refusal(port="x", workers=0).endswith("(and 1 more)")


def test_debug_is_refused_off_loopback() -> None:
    assert refusal(debug=True, host="0.0.0.0").startswith("DEBUG must be off when HOST is not loopback")
    assert load_settings(None, debug=True, host="::1").debug


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("secret_key", CANARY),
        ("admin_password", CANARY * 200),
        ("database_url", f"mysql://u:{CANARY}@h/d"),
        ("redis_url", f"http://:{CANARY}@h"),
    ],
)
def test_a_refusal_never_shows_a_secret(name: str, value: str) -> None:
    assert CANARY not in refusal(**{name: value})


def test_no_secret_is_described_or_represented() -> None:
    settings = load_settings(
        None,
        secret_key=CANARY * 4,
        admin_password=CANARY,
        database_url=f"postgresql://u:{CANARY}@h/d",
        redis_url=f"redis://:{CANARY}@h/0",
    )
    shown = f"{settings!r} {settings} {describe(settings)}"
    assert CANARY not in shown
    assert "postgresql+asyncpg://u:********@h/d" in shown


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:pw@h", "redis://:********@h"),
        ("postgresql://u:p@s/s:w@h/d", "postgresql://u:********@h/d"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=********&db=1"),
    ],
)
def test_a_password_in_a_url_is_masked(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def test_a_near_miss_in_the_file_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CACHE_TLL=60\nOPENAI_API_KEY=sk-1\nHTTPS_PROXY=http://p\nSECRETKEY=x\n")
    warnings = load_settings().warnings
    assert warnings == (
        ".env: CACHE_TLL is not a setting and has no effect; did you mean CACHE_TTL?",
        ".env: SECRETKEY is not a setting and has no effect; did you mean SECRET_KEY?",
    )


def test_an_open_bind_without_a_proxy_is_a_warning() -> None:
    assert "TLS proxy" in load_settings(None, host="0.0.0.0").warnings[0]
    assert load_settings(None, host="0.0.0.0", trusted_proxies="10.0.0.1").warnings == ()


def test_documentation_and_metrics_are_open_on_loopback_only() -> None:
    assert load_settings(None).docs_open
    assert load_settings(None, host="localhost").metrics_open
    public = load_settings(None, host="0.0.0.0")
    assert not public.docs_open
    assert not public.metrics_open
    assert load_settings(None, host="0.0.0.0", docs_public=True).docs_open


def test_hosts_follow_from_the_bind_unless_given() -> None:
    assert load_settings(None).answered_hosts == ("localhost", "127.0.0.1", "[::1]")
    assert load_settings(None, host="0.0.0.0").answered_hosts == ("*",)
    assert load_settings(None, allowed_hosts="a.example, b.example").answered_hosts == ("a.example", "b.example")


def test_a_missing_settings_file_is_refused_unless_it_is_the_default(tmp_path: Path) -> None:
    load_settings(".env")
    with pytest.raises(BadConfiguration, match="does not exist"):
        load_settings(tmp_path / "other.env")


def test_an_unknown_override_is_refused() -> None:
    assert refusal(prot=1).startswith("PROT is not a setting")


def test_the_example_file_is_the_one_of_the_settings() -> None:
    assert (REPOSITORY / ".env.example").read_text() == example_env(), (
        "run: mnemosine check-config --example > .env.example"
    )


def test_the_example_file_uncommented_is_the_defaults(tmp_path: Path) -> None:
    active = [line[1:] for line in example_env().splitlines() if line.startswith("#") and not line.startswith("# ")]
    (tmp_path / "all.env").write_text("\n".join(active))
    assert load_settings(tmp_path / "all.env").model_dump() == load_settings(None).model_dump()


def test_every_setting_says_what_it_means() -> None:
    meaning = meanings()
    for name, field in Settings.model_fields.items():
        assert meaning[name].endswith("."), name
        assert field.examples, name
