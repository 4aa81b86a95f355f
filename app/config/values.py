"""What a setting may be: each kind of value, how it may be written, and what is said of one that cannot work."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode


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


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Origins = Annotated[Names, AfterValidator(_origins)]
HostNames = Annotated[Names, AfterValidator(_hosts)]
Proxies = Annotated[Names, AfterValidator(_proxies)]
AgentPlaces = Annotated[Names, AfterValidator(_agents)]
Host = Annotated[str, AfterValidator(_host)]
Folder = Annotated[Path, AfterValidator(Path.expanduser)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
SecretKey = Annotated[SecretStr, AfterValidator(_secret_key)]
AdminPassword = Annotated[SecretStr, AfterValidator(_admin_password)]
ModelName = Annotated[str, AfterValidator(_model)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(_lower)]
