"""Every setting with its unit, default and bounds.

`.env.example` and the settings page are generated from the fields here, so what stands below a field is what an
operator reads.
"""

import ipaddress
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, PrivateAttr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.config.values import (
    AdminPassword,
    AgentPlaces,
    DatabaseUrl,
    Folder,
    Host,
    HostNames,
    LogFormat,
    LogLevel,
    ModelName,
    Names,
    Origins,
    Proxies,
    RedisUrl,
    SecretKey,
)

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Settings(BaseSettings):
    """All settings of one process, checked; made by `load_settings()`, never changed afterwards."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        env_file_encoding="utf-8",
        hide_input_in_errors=True,
        validate_default=True,
    )

    # Where it listens
    host: Host = Field("127.0.0.1", examples=["127.0.0.1"])
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
    trusted_proxies: Proxies = Field((), examples=["127.0.0.1,10.0.0.0/8"])
    """Addresses or networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    allowed_hosts: HostNames = Field((), examples=["mnemosine.example.org"])
    """Host headers that are answered. Empty: loopback names while bound to loopback, else any."""
    allowed_origins: Origins = Field((), examples=["https://chat.example.org"])
    """Exact origins of web pages that may call the API from a browser (CORS). Empty: none."""

    # What it keeps
    data_dir: Folder = Field(Path("data"), examples=["./data"])
    """Folder of the SQLite file and of the generated secrets (mode 0700); created if missing."""
    database_url: DatabaseUrl = Field(
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
    redis_url: RedisUrl | None = Field(None, repr=False, examples=["redis://localhost:6379/0"])
    """Redis for what replicas share: cache, limits, counters. Unset: no Redis."""

    # Who may use it
    secret_key: SecretKey | None = Field(None, examples=["the output of `openssl rand -base64 48`"])
    """Key that signs access tokens, at least 32 bytes. Unset: generated once into DATA_DIR."""
    access_token_expire_minutes: int = Field(60, ge=1, le=43200, examples=["60"])
    """Life of an access token, in minutes. 60: there is no refresh token, and a new password ends tokens at once."""
    admin_username: str = Field("admin", min_length=1, max_length=64, pattern=r"^[\w.@+\-]+$", examples=["admin"])
    """Name of the administrator that the first start creates."""
    admin_password: AdminPassword | None = Field(None, examples=["a long passphrase"])
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
    default_model: ModelName = Field("offline", examples=["openai-chat:gpt-5-mini"])
    """Model of agents that name none: provider:model as Pydantic AI writes it, or `offline`. Unset: \
openai-chat:gpt-5-mini where OPENAI_API_KEY is set, else anthropic:claude-sonnet-4-5 where ANTHROPIC_API_KEY is, \
else `offline`."""
    agents_dir: Folder | None = Field(None, examples=["./agents"])
    """Folder of agent files (YAML or JSON); the name of a file is the name of its agent."""
    agents: AgentPlaces = Field((), examples=["my_package.my_module:my_agent"])
    """Pydantic AI agents in Python code, as package.module:attribute, comma-separated."""
    allowed_capabilities: Names = Field((), examples=["WebSearch,MCP"])
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
    log_level: LogLevel = Field("info", examples=["info"])
    """Least severe log lines that are written: debug, info, warning or error."""
    log_format: LogFormat = Field("text", examples=["json"])
    """Shape of log lines: text for a terminal, json for a collector."""
    late_imports: bool = Field(True, examples=["false"])
    """Import the types of OpenAI's SDK as they are used, for a faster start and less memory. False: all at once, as \
the SDK does it by itself."""
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
    def origins(self) -> Mapping[str, str]:
        """Where the values came from, by the names of the fields; the others have their defaults."""
        return self._origins

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd and yet no reason to stop, one line each."""
        return self._warnings


def example_of(name: str) -> str:
    """A valid value of this setting, as it is written in `.env`."""
    examples = Settings.model_fields[name].examples
    assert examples, f"{name} has no example"
    return str(examples[0])
