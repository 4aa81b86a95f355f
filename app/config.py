"""The settings: every knob with its unit, default and bounds, read once from the environment and `.env`.

Only `main`, `cli` and `runtime` read this module; everything below them takes plain values. `.env.example` and the
settings page are generated from the fields here, so what stands below a field is what an operator reads.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from app.errors import BadConfiguration
from app.logs import redact

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
# Which provider answers when nobody chose a model: the first whose key is there.
_PROVIDER_DEFAULTS = (
    ("OPENAI_API_KEY", "openai-chat:gpt-5-mini"),
    ("ANTHROPIC_API_KEY", "anthropic:claude-sonnet-4-5"),
)
_MASK = "********"
# Names that belong to others and look like ours.
_NOT_OURS = frozenset({"LOG_FILE", "HOSTNAME", "HOSTS"})


def _split(value: object) -> object:
    """Accept `a, b` as well as a list; empty items vanish."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _host(value: str) -> str:
    bare = value.strip().removeprefix("[").removesuffix("]")
    if not re.fullmatch(r"[A-Za-z0-9._:%\-]+", bare) or "://" in bare:
        raise ValueError("must be an address or a host name, without scheme and port")
    return bare


def _database_url(value: str) -> str:
    """Name the asynchronous driver in a database URL that leaves it out."""
    scheme, separator, rest = value.strip().partition("://")
    drivers = {
        "sqlite": "sqlite+aiosqlite",
        "sqlite+aiosqlite": "sqlite+aiosqlite",
        "postgres": "postgresql+asyncpg",
        "postgresql": "postgresql+asyncpg",
        "postgresql+asyncpg": "postgresql+asyncpg",
    }
    driver = drivers.get(scheme.lower())
    if not separator or driver is None:
        raise ValueError("must begin with sqlite:/// or postgresql://")
    if driver.startswith("sqlite") and not rest.startswith("/"):
        raise ValueError("needs three slashes before a relative path, four before an absolute one")
    return f"{driver}://{rest}"


def _redis_url(value: str) -> str:
    value = value.strip()
    if urlsplit(value).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return value


def _secret_key(value: SecretStr) -> SecretStr:
    length = len(value.get_secret_value().encode())
    if length < 32:
        raise ValueError(f"must have at least 32 bytes, has {length}; leave it unset to have one generated")
    return value


def _admin_password(value: SecretStr) -> SecretStr:
    length = len(value.get_secret_value().encode())
    if not 8 <= length <= 1024:
        raise ValueError(f"must have 8 to 1,024 bytes, has {length}; leave it unset to have one generated")
    return value


def _model(value: str) -> str:
    value = value.strip()
    if value != "offline" and not re.fullmatch(r"[a-z][a-z0-9+_\-]*:\S+", value):
        raise ValueError("must be `offline` or provider:model")
    return value


def _agents(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        module, separator, attribute = value.partition(":")
        names = [*module.split("."), *attribute.split(".")]
        if not separator or not all(name.isidentifier() for name in names):
            raise ValueError(f"must list package.module:attribute, and {value!r} is not that")
    return values


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if "*" in value:
            raise ValueError("must list exact origins: `*` would let any page use the credentials of its visitor")
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query or parts.username:
            raise ValueError("must list origins as scheme://host[:port], without a path")
    return values


def _hosts(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\]", value):
            raise ValueError("must list host names without scheme and port; `*.example.org` covers subdomains")
    return values


def _proxies(values: tuple[str, ...]) -> tuple[str, ...]:
    networks: list[str] = []
    for value in values:
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError("must list IP addresses or networks") from None
        if network.prefixlen == 0:
            raise ValueError("must not trust every address: a client could then choose its own")
        networks.append(str(network) if "/" in value else value)
    return tuple(networks)


_Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """All settings of one process, checked; made by `load_settings()`, never changed afterwards."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        env_file_encoding="utf-8",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    # Where it listens
    host: Annotated[str, AfterValidator(_host)] = Field("127.0.0.1", examples=["127.0.0.1"])
    """Address to listen on. Anything but loopback makes the service reachable for others: put TLS in front."""
    port: int = Field(8000, ge=0, le=65535, examples=["8000"])
    """TCP port; 0 takes a free one and prints it."""
    workers: int = Field(1, ge=1, le=256, examples=["4"])
    """Processes that serve requests. More than one per CPU core gains nothing."""
    keep_alive_seconds: int = Field(5, ge=1, le=3600, examples=["75"])
    """Seconds that an idle connection stays open. Behind a proxy that keeps connections: more than it keeps them."""
    graceful_timeout_seconds: int = Field(25, ge=0, le=3600, examples=["25"])
    """Seconds that running requests get at shutdown; streams are told when a fifth of it, at most 5 s, is left."""
    max_requests: int = Field(0, ge=0, le=1_000_000_000, examples=["100000"])
    """Requests after which a worker is replaced without losing any; 0: never. A leak is better repaired."""
    max_requests_jitter: int | None = Field(None, ge=0, le=1_000_000_000, examples=["10000"])
    """At most so many requests more, by chance, so that workers are not replaced together. Unset: a tenth of \
MAX_REQUESTS."""
    max_worker_memory_mb: int = Field(0, ge=0, le=1_048_576, examples=["512"])
    """MiB of resident memory (shared pages included) above which a worker is replaced; 0: never."""
    trusted_proxies: Annotated[_Names, AfterValidator(_proxies)] = Field((), examples=["127.0.0.1,10.0.0.0/8"])
    """Addresses or networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    allowed_hosts: Annotated[_Names, AfterValidator(_hosts)] = Field((), examples=["mnemosine.example.org"])
    """Host headers that are answered. Empty: loopback names while bound to loopback, else any."""
    allowed_origins: Annotated[_Names, AfterValidator(_origins)] = Field((), examples=["https://chat.example.org"])
    """Exact origins of web pages that may call the API from a browser (CORS). Empty: none."""

    # What it keeps
    data_dir: Annotated[Path, AfterValidator(Path.expanduser)] = Field(Path("data"), examples=["./data"])
    """Folder of the SQLite file and of the generated secrets (mode 0700); created if missing."""
    database_url: Annotated[str, AfterValidator(_database_url)] = Field(
        default_factory=lambda data: f"sqlite+aiosqlite:///{data['data_dir']}/mnemosine.db",
        repr=False,
        examples=["postgresql://mnemosine:password@localhost/mnemosine"],
    )
    """Database: sqlite:///path or postgresql://user:password@host/name. Unset: a SQLite file in DATA_DIR."""
    db_pool_size: int = Field(20, ge=1, le=1000, examples=["20"])
    """Database connections that stay open, per worker."""
    db_max_overflow: int = Field(30, ge=0, le=1000, examples=["30"])
    """Further database connections that may be opened for a moment, per worker."""
    conversation_retention_days: float = Field(0, ge=0, le=36_500, examples=["90"])
    """Days after which a conversation that nobody used is deleted; 0 keeps all."""
    redis_url: Annotated[str, AfterValidator(_redis_url)] | None = Field(
        None, repr=False, examples=["redis://localhost:6379/0"]
    )
    """Redis for what replicas share: cache, limits, counters. Unset: no Redis."""

    # Who may use it
    secret_key: Annotated[SecretStr, AfterValidator(_secret_key)] | None = Field(
        None, examples=["the output of `openssl rand -base64 48`"]
    )
    """Key that signs access tokens, at least 32 bytes. Unset: generated once into DATA_DIR."""
    access_token_expire_minutes: int = Field(60, ge=1, le=43200, examples=["60"])
    """Life of an access token, in minutes. 60: there is no refresh token, and a new password ends tokens at once."""
    admin_username: str = Field("admin", min_length=1, max_length=64, pattern=r"^[\w.@+\-]+$", examples=["admin"])
    """Name of the administrator that the first start creates."""
    admin_password: Annotated[SecretStr, AfterValidator(_admin_password)] | None = Field(
        None, examples=["a long passphrase"]
    )
    """Password of that administrator. Unset: generated and printed once."""
    rate_limit_per_minute: int = Field(600, ge=0, le=1_000_000, examples=["600"])
    """Prompts per user and minute, over all workers and replicas; 0 switches the limit off. Other requests have ten \
times as many, and at least 600."""
    tokens_per_minute: int = Field(0, ge=0, le=1_000_000_000, examples=["200000"])
    """Model tokens per user and minute, over all workers and replicas; 0 switches the limit off. Answers from the \
cache take none."""
    docs_public: bool = Field(False, examples=["true"])
    """Show /docs and /openapi.json without login also when not bound to loopback."""
    metrics_public: bool = Field(False, examples=["true"])
    """Show /metrics without login also when not bound to loopback."""

    # Which agents answer
    default_model: Annotated[str, AfterValidator(_model)] = Field("offline", examples=["openai-chat:gpt-5-mini"])
    """Model of agents that name none: provider:model as Pydantic AI writes it, or `offline`. Unset: \
openai-chat:gpt-5-mini where OPENAI_API_KEY is set, else anthropic:claude-sonnet-4-5 where ANTHROPIC_API_KEY is, \
else `offline`."""
    agents_dir: Annotated[Path, AfterValidator(Path.expanduser)] | None = Field(None, examples=["./agents"])
    """Folder of agent files (YAML or JSON); the name of a file is the name of its agent."""
    agents: Annotated[_Names, AfterValidator(_agents)] = Field((), examples=["my_package.my_module:my_agent"])
    """Pydantic AI agents in Python code, as package.module:attribute, comma-separated."""
    allowed_capabilities: _Names = Field((), examples=["WebSearch,MCP"])
    """Capabilities of agent files that reach beyond the model (workspace, MCP, web, ...) and are allowed."""
    agent_pool_size: int = Field(10, ge=1, le=10_000, examples=["10"])
    """Live agents kept ready, per worker; the least recently used one makes room."""
    provider_max_concurrency: int = Field(1000, ge=1, le=100_000, examples=["1000"])
    """Runs at once on one model provider, per worker; as many again may wait 10 s for their turn, then 503."""
    agent_idle_seconds: float = Field(600, gt=0, le=86_400, examples=["600"])
    """Seconds after which an unused agent leaves the pool."""
    model_timeout_seconds: float = Field(110, gt=0, le=3600, examples=["110"])
    """Seconds that one prompt may take in all, tool calls included; then the answer is a 504."""

    # What it remembers of answers
    cache_enabled: bool = Field(True, examples=["true"])
    """Answer a repeated prompt from memory."""
    cache_ttl: int = Field(3600, ge=1, le=31_536_000, examples=["3600"])
    """Seconds that a cached answer lives."""
    cache_max_bytes: int = Field(64 * 1024 * 1024, ge=0, le=2**40, examples=["67108864"])
    """Bytes of answers kept in memory, per worker; the least recently used one makes room."""

    # How it speaks
    enable_response_compression: bool = Field(True, examples=["true"])
    """Compress large answers for clients that accept gzip; event streams never."""
    max_requests_in_flight: int = Field(1000, ge=1, le=100_000, examples=["1000"])
    """Requests answered at once, per worker; as many again may wait 5 s for their turn, then 503. Health, metrics and \
performance routes never wait."""
    max_request_bytes: int = Field(1024 * 1024, ge=1024, le=2**30, examples=["1048576"])
    """Bytes of the largest request body that is read; above it the answer is a 413."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        "info", examples=["info"]
    )
    """Least severe log lines that are written: debug, info, warning or error."""
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = Field("text", examples=["json"])
    """Shape of log lines: text for a terminal, json for a collector."""
    debug: bool = Field(False, examples=["false"])
    """For development on loopback only: more detail in logs. Refused on any other address."""

    _origins: dict[str, str] = PrivateAttr(default_factory=dict[str, str])
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _refuse_debug_off_loopback(self) -> "Settings":
        if self.debug and not self.is_loopback:
            raise ValueError(
                f"DEBUG must be off when HOST is not loopback, and HOST is {self.host}; example: DEBUG=false"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    @property
    def max_requests_jitter_in_effect(self) -> int:
        """What `MAX_REQUESTS_JITTER` says, or a tenth of `MAX_REQUESTS`."""
        return self.max_requests // 10 if self.max_requests_jitter is None else self.max_requests_jitter

    @property
    def docs_open(self) -> bool:
        """Whether `/docs` and `/openapi.json` need no login."""
        return self.docs_public or self.is_loopback

    @property
    def metrics_open(self) -> bool:
        """Whether `/metrics` needs no login."""
        return self.metrics_public or self.is_loopback

    @property
    def answered_hosts(self) -> tuple[str, ...]:
        """The Host headers to answer, `*` for any: what `ALLOWED_HOSTS` says, or follows from the bind."""
        if self.allowed_hosts:
            return self.allowed_hosts
        return tuple(dict.fromkeys((*_LOOPBACK_NAMES, self.host))) if self.is_loopback else ("*",)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd and yet no reason to stop, one line each."""
        return self._warnings


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of `mnemosine check-config`: `value` is safe to show."""

    name: str
    value: str
    origin: str


def load_settings(env_file: str | Path | None = ".env", **overrides: Any) -> Settings:
    """The settings from `overrides` (lower-case names; None means not given), the environment, then `env_file`.

    A missing `.env` is nothing special; any other `env_file` must exist; None reads none. Raises `BadConfiguration`
    with one line that names the setting, what is wrong with it, and a valid example. Never echoes a secret.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if unknown := given.keys() - Settings.model_fields.keys():
        raise BadConfiguration(f"{min(unknown).upper()} is not a setting; `mnemosine check-config` lists them all")
    file_values = _read_env_file(env_file)
    surroundings = {**file_values, **{name: value for name, value in os.environ.items() if value}}
    upper = {name.upper(): value for name, value in surroundings.items()}

    chosen_by = None
    if "default_model" not in given and "DEFAULT_MODEL" not in upper:
        for key, model in _PROVIDER_DEFAULTS:
            if key in upper:
                given["default_model"] = model
                chosen_by = f"default, as {key} is set"
                break
    arguments: dict[str, Any] = {**given, "_env_file": env_file if file_values else None}
    try:
        settings = Settings(**arguments)
    except ValidationError as error:
        raise BadConfiguration(_first_fault(error)) from None
    except SettingsError as error:
        raise BadConfiguration(_one_line(str(error))) from None

    origins = _origins_of(given, file_values, env_file)
    if chosen_by is not None:
        origins["default_model"] = chosen_by
    settings._origins = origins  # pyright: ignore[reportPrivateUsage] - made here, frozen from here on
    settings._warnings = (*_near_misses(file_values, env_file), *_exposure(settings))  # pyright: ignore[reportPrivateUsage]
    return settings


def export_foreign_variables(env_file: str | Path | None = ".env") -> tuple[str, ...]:
    """Put the lines of `env_file` that are no settings of ours into the environment; returns their names.

    Provider keys and base URLs keep their providers' names (`OPENAI_API_KEY`, …), and the providers' libraries look
    for them in the environment. What is set there already wins. Called by whoever starts the process.
    """
    ours = {name.upper() for name in Settings.model_fields}
    exported: list[str] = []
    for name, value in _read_env_file(env_file).items():
        if name.upper() not in ours and not os.environ.get(name):
            os.environ[name] = value
            exported.append(name)
    return tuple(exported)


def describe(settings: Settings) -> list[SettingRow]:
    """Every setting with its effective value, secrets and passwords in URLs masked, and where the value came from."""
    origins = settings._origins  # pyright: ignore[reportPrivateUsage]
    return [
        SettingRow(name.upper(), _shown(getattr(settings, name)), origins.get(name, "default"))
        for name in Settings.model_fields
    ]


def example_env() -> str:
    """The text of `.env.example`: every setting with its meaning and bounds, commented out at its default."""
    lines = [
        "# The settings of Mnemosine. Copy to .env, uncomment what you change; the environment wins over the file.",
        "# Written by `mnemosine check-config --example`; a test keeps it equal to app/config.py.",
    ]
    for name, field in Settings.model_fields.items():
        lines += ["", *_wrapped(f"{field.description} {_bounds(field.metadata)}".strip())]
        default = field.get_default()
        value = _shown(default) if default not in (None, ()) and field.default_factory is None else ""
        if value:
            lines.append(f"#{name.upper()}={value}")
        else:
            lines.append(f"#{name.upper()}=          # example: {_example(name)}")
    lines += [
        "",
        "# Provider keys and base URLs keep their providers' own names, for example:",
        "#OPENAI_API_KEY=",
        "#OPENAI_BASE_URL=",
        "#ANTHROPIC_API_KEY=",
    ]
    return "\n".join(lines) + "\n"


def mask_url(url: str) -> str:
    """`url` with its password masked, whatever else is wrong with it."""
    # Greedy: a password with an unescaped slash or at-sign is wrong, and still must not show.
    masked = re.sub(r"^([^:/?#]+://[^:/?#@]*):.*@", rf"\1:{_MASK}@", url)
    return re.sub(r"([?&](?:password|passwd|token|secret)=)[^&#]*", rf"\1{_MASK}", masked, flags=re.IGNORECASE)


def _read_env_file(env_file: str | Path | None) -> dict[str, str]:
    if env_file is None:
        return {}
    path = Path(env_file)
    try:
        if not path.is_file():
            if path == Path(".env"):
                return {}
            raise BadConfiguration(f"the settings file {path} does not exist; example: --env-file .env")
        values = dotenv_values(path, encoding="utf-8")
    except OSError as error:
        raise BadConfiguration(f"the settings file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadConfiguration(f"the settings file {path} is not UTF-8 text") from error
    return {name: value for name, value in values.items() if value}


def _origins_of(
    given: Mapping[str, object], file_values: Mapping[str, str], env_file: str | Path | None
) -> dict[str, str]:
    environment = {name.lower() for name, value in os.environ.items() if value}
    in_file = {name.lower() for name in file_values}
    origins: dict[str, str] = {}
    for name in Settings.model_fields:
        if name in given:
            origins[name] = "command line"
        elif name in environment:
            origins[name] = "environment"
        elif name in in_file:
            origins[name] = str(env_file)
    return origins


def _near_misses(file_values: Mapping[str, str], env_file: str | Path | None) -> list[str]:
    ours = [name.upper() for name in Settings.model_fields]
    lines: list[str] = []
    for name in file_values:
        if name.upper() in ours or name.upper() in _NOT_OURS:
            continue
        if close := difflib.get_close_matches(name.upper(), ours, n=1, cutoff=0.82):
            lines.append(f"{env_file}: {name} is not a setting and has no effect; did you mean {close[0]}?")
    return lines


def _exposure(settings: Settings) -> list[str]:
    if settings.is_loopback or settings.trusted_proxies:
        return []
    line = (
        f"HOST={settings.host} is reachable from other machines, and no proxy is declared: passwords and keys would "
        "travel unencrypted. Put a TLS proxy in front and name it, for example TRUSTED_PROXIES=127.0.0.1"
    )
    return [line]


def _first_fault(error: ValidationError) -> str:
    # DATABASE_URL's default is not computed when a field before it is wrong; that is no fault of its own.
    faults = [
        fault
        for fault in error.errors(include_url=False, include_context=False, include_input=True)
        if fault["type"] != "default_factory_not_called"
    ]
    fault = faults[0]
    problem = _one_line(fault["msg"].removeprefix("Value error, "))
    if not fault["loc"]:
        return problem
    name = str(fault["loc"][0])
    field = Settings.model_fields[name]
    problem = problem[:1].lower() + problem[1:]
    problem = problem.replace("input should be ", "must be ").partition(", unable to ")[0]
    if problem.startswith("value should have "):
        problem = "must have " + problem.removeprefix("value should have ")
    if problem.startswith("string should "):
        problem = "must " + problem.removeprefix("string should ")
    got = ""
    if field.repr and "SecretStr" not in str(field.annotation):
        given: object = fault.get("input")
        listed = ",".join(map(str, cast("tuple[object, ...]", given))) if isinstance(given, tuple) else str(given)
        shown = redact(_one_line(listed))
        got = f", got {shown[:40]!r}" + ("…" if len(shown) > 40 else "")
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{name.upper()} {problem}{got}; example: {name.upper()}={_example(name)}{more}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _example(name: str) -> str:
    examples = Settings.model_fields[name].examples
    assert examples, f"{name} has no example"
    return str(examples[0])


def _shown(value: object) -> str:
    match value:
        case None:
            return ""
        case SecretStr():
            return _MASK
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(str(item) for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case float():
            return f"{value:g}"
        case Path():
            return str(value)
        case _:
            return mask_url(str(value))


def _bounds(metadata: list[Any]) -> str:
    low = next((f"{item.ge:,}" for item in metadata if hasattr(item, "ge")), None)
    above = next((f"{item.gt:,}" for item in metadata if hasattr(item, "gt")), None)
    high = next((f"{item.le:,}" for item in metadata if hasattr(item, "le")), None)
    if low is not None and high is not None:
        return f"[{low} to {high}]"
    return f"[more than {above}, up to {high}]" if above is not None and high is not None else ""


def _wrapped(text: str, *, width: int = 118) -> list[str]:
    lines = ["#"]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > width:
            lines.append("#")
        lines[-1] += f" {word}"
    return lines
