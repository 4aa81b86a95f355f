"""The arithmetic between settings, machine, database and Redis that nobody does: what will not go well, and the cure.

`mnemosine doctor` prints all of it; `serve` warns of what is worse than a note. Beside the runtime, since it opens
nothing that lives on.
"""

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.config import Settings
from app.core.model_providers import fault_of
from app.core.security import open_data_dir, signing_key
from app.db.server_facts import PostgresFacts, read_postgres_facts
from app.errors import BadConfiguration, DatabaseUnavailable, StoreUnavailable

Severity = Literal["failure", "warning", "note"]

_REDIS_CONNECTIONS = 64
_OTHER_FILES = 100
"""Logs, listener, SQLite, event loop, and what a library keeps open."""
_PROXY_KEEPS_S = 60
"""So long nginx keeps an idle connection to us, if nobody told it otherwise."""
_SKEW_S, _BAD_SKEW_S = 2.0, 10.0
"""A token is accepted up to 10 s before it was made (`core/security.py`)."""
_LITTLE_DISK, _NO_DISK = 2**30, 100 * 2**20
_AWAY = "away"
_REMOTE = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "ceph", "glusterfs", "afs")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not fit: which setting, what it is now, why that goes wrong, and what to do."""

    severity: Severity
    setting: str
    value: str
    problem: str
    cure: str

    @property
    def is_outage(self) -> bool:
        """Whether it is a server that is away, which everybody who needs it says too."""
        return self.value == _AWAY

    def line(self) -> str:
        """All of it in one line."""
        return f"{self.setting}={self.value}: {self.problem}; {self.cure}"


async def examine(settings: Settings, *, replicas: int = 1, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Everything that does not fit on this machine and with these servers, the worst first.

    `replicas` is how many machines serve with these settings. Makes the data directory where it is missing.
    """
    found = [
        *_data_dir(settings),
        *_files(settings),
        *_processors(settings),
        *_memory(settings),
        *_timeouts(settings),
        *_several_replicas(settings, replicas),
        *_model(settings),
    ]
    if settings.database_url.startswith("postgresql"):
        try:
            facts = await read_postgres_facts(settings.database_url, clock=clock)
        except (DatabaseUnavailable, BadConfiguration) as error:
            found.append(_away("DATABASE_URL", error.detail))
        else:
            found += [*_connections(settings, facts, replicas), *_skew("DATABASE_URL", "PostgreSQL", facts.ahead_s)]
    if settings.redis_url is not None:
        found += await _redis(settings.redis_url, clock)
    order: tuple[Severity, ...] = ("failure", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def files_wanted(settings: Settings) -> int:
    """The open files that one worker may need at once."""
    calls = min(settings.provider_max_concurrency, settings.max_requests_in_flight)
    redis = _REDIS_CONNECTIONS if settings.redis_url is not None else 0
    # As many requests again as are answered wait in line, each on a connection of its own.
    return 2 * settings.max_requests_in_flight + calls + _per_worker(settings) + redis + _OTHER_FILES


def allow_files(settings: Settings) -> None:
    """Raise this process's own limit on open files to what a worker may need, as far as the machine lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files_wanted(settings) if hard == resource.RLIM_INFINITY else min(hard, files_wanted(settings))
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _per_worker(settings: Settings) -> int:
    return settings.db_pool_size + settings.db_max_overflow


def _connections(settings: Settings, facts: PostgresFacts, replicas: int) -> Iterator[Finding]:
    processes = replicas * settings.workers
    wanted, usable = processes * _per_worker(settings), facts.usable_connections
    if wanted <= usable:
        return
    each = usable // processes
    pool = max(1, min(settings.db_pool_size, each * 2 // 5))
    fits = f"set DB_POOL_SIZE={pool} and DB_MAX_OVERFLOW={max(0, each - pool)}, or " if each >= 1 else ""
    more = facts.max_connections + wanted - usable
    yield Finding(
        "failure",
        "DB_POOL_SIZE+DB_MAX_OVERFLOW",
        f"{settings.db_pool_size}+{settings.db_max_overflow}",
        f"{replicas} x {settings.workers} workers may want {wanted} connections, and PostgreSQL has {usable} for them "
        f"(max_connections={facts.max_connections})",
        f"{fits}raise max_connections to {more}",
    )


def _files(settings: Settings) -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files_wanted(settings)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        spare = hard - (wanted - 3 * settings.max_requests_in_flight)
        yield Finding(
            "failure",
            "MAX_REQUESTS_IN_FLIGHT",
            str(settings.max_requests_in_flight),
            f"a worker may need {wanted} open files, and this user may have {hard}",
            f"raise the limit (LimitNOFILE={wanted} in a systemd unit, ulimit -Hn {wanted} in a shell), or set "
            f"MAX_REQUESTS_IN_FLIGHT={max(1, spare // 3)}",
        )


def _processors(settings: Settings) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if settings.workers > cores:
        problem = f"this machine has {cores} cores for them, and more workers than cores gain nothing"
        yield Finding("note", "WORKERS", str(settings.workers), problem, f"set WORKERS={cores}")


def _memory(settings: Settings) -> Iterator[Finding]:
    memory = _memory_bytes()
    kept = settings.workers * settings.cache_max_bytes
    if settings.cache_enabled and memory and kept > memory / 2:
        mib, of = kept / 2**20, memory / 2**20
        yield Finding(
            "warning",
            "CACHE_MAX_BYTES",
            str(settings.cache_max_bytes),
            f"{settings.workers} workers may keep {mib:.0f} MiB of answers in {of:.0f} MiB of memory",
            f"set CACHE_MAX_BYTES={int(memory / 4 / settings.workers)}",
        )


def _memory_bytes() -> int | None:
    """What this process may use: the machine's memory, or what its control group is given of it."""
    try:
        all_of_it = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
    try:
        given = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return all_of_it
    return min(all_of_it, int(given)) if given.isdecimal() else all_of_it


def _timeouts(settings: Settings) -> Iterator[Finding]:
    model, grace, idle = (
        settings.model_timeout_seconds,
        settings.graceful_timeout_seconds,
        settings.keep_alive_seconds,
    )
    if settings.trusted_proxies and idle <= _PROXY_KEEPS_S:
        yield Finding(
            "warning",
            "KEEP_ALIVE_SECONDS",
            str(idle),
            f"a proxy keeps idle connections for {_PROXY_KEEPS_S} s unless told otherwise, and sends a request into "
            "one that is just being closed",
            "set KEEP_ALIVE_SECONDS=75, or have the proxy close first",
        )
    if model > grace:
        yield Finding(
            "note",
            "GRACEFUL_TIMEOUT_SECONDS",
            str(grace),
            f"a prompt may take MODEL_TIMEOUT_SECONDS={model:g}, a restart cuts those that need more than {grace} s",
            f"set GRACEFUL_TIMEOUT_SECONDS={int(model) + 5} where long prompts must survive restarts, and let systemd "
            f"or Kubernetes wait {int(model) + 15} s",
        )
    if settings.access_token_expire_minutes * 60 < model:
        problem = f"a token lives for less than one prompt may take (MODEL_TIMEOUT_SECONDS={model:g})"
        value = str(settings.access_token_expire_minutes)
        yield Finding("note", "ACCESS_TOKEN_EXPIRE_MINUTES", value, problem, "set ACCESS_TOKEN_EXPIRE_MINUTES=60")


def _model(settings: Settings) -> Iterator[Finding]:
    if (fault := fault_of(settings.default_model)) is not None:
        # Agents may all have models of their own; `serve` looks at theirs.
        severity = "warning" if settings.agents or settings.agents_dir is not None else "failure"
        yield Finding(severity, "DEFAULT_MODEL", settings.default_model, f"it cannot work: {fault[0]}", fault[1])


def _data_dir(settings: Settings) -> Iterator[Finding]:
    value = str(settings.data_dir)
    try:
        folder = open_data_dir(settings.data_dir)
        if settings.secret_key is None and (folder / "secret.key").exists():
            signing_key(settings.data_dir)
    except BadConfiguration as error:
        problem, _, cure = error.detail.removeprefix("DATA_DIR ").partition("; ")
        yield Finding("failure", "DATA_DIR", value, problem, cure or "give it to the user that serves")
        return
    free = shutil.disk_usage(folder).free
    if free < _LITTLE_DISK:
        severity = "failure" if free < _NO_DISK else "warning"
        problem = f"{free / 2**20:.0f} MiB are free on its disk; when it is full, nothing can be stored"
        yield Finding(severity, "DATA_DIR", value, problem, "make room, or move it to another disk")
    if (kind := _filesystem(folder)).startswith(_REMOTE):
        problem = f"it is on a network file system ({kind}), where the locks of SQLite and of the workers do not hold"
        yield Finding("failure", "DATA_DIR", value, problem, "move it to a local disk")


def _filesystem(folder: Path) -> str:
    """The type of the file system that `folder` is on; empty where that cannot be known."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    mounts = {fields[1]: fields[2] for line in lines if len(fields := line.split()) > 2}
    real = folder.resolve()
    return next((mounts[str(parent)] for parent in (real, *real.parents) if str(parent) in mounts), "")


def _several_replicas(settings: Settings, replicas: int) -> Iterator[Finding]:
    if replicas < 2:
        return
    if settings.database_url.startswith("sqlite"):
        problem = f"{replicas} replicas have a SQLite file each: users, conversations and budgets differ"
        yield Finding("failure", "DATABASE_URL", "sqlite", problem, "set DATABASE_URL=postgresql://...")
    if settings.redis_url is None:
        problem = f"{replicas} replicas limit, cache and revoke each for itself"
        yield Finding("failure", "REDIS_URL", "", problem, "set REDIS_URL=redis://...")
    if settings.secret_key is None:
        problem = f"{replicas} replicas make a key each, and refuse the tokens of the others"
        cure = "set the same SECRET_KEY everywhere (openssl rand -base64 48)"
        yield Finding("failure", "SECRET_KEY", "", problem, cure)


async def _redis(url: str, clock: Callable[[], float]) -> list[Finding]:
    # Here, since the driver takes 0.2 s to import and is an extra.
    from app.stores.redis_facts import read_redis_facts

    try:
        facts = await read_redis_facts(url, clock=clock)
    except StoreUnavailable as error:
        return [_away("REDIS_URL", error.detail)]
    found = list(_skew("REDIS_URL", "Redis", facts.ahead_s))
    setting, value = "maxmemory-policy", facts.policy
    if facts.max_bytes == 0:
        problem = "Redis has no maxmemory: what is cached fills the memory until the kernel ends it"
        cure = "set maxmemory, and maxmemory-policy volatile-lru"
        found.append(Finding("warning", "maxmemory", "0", problem, cure))
    elif value == "noeviction":
        problem = "a full Redis refuses every write: limits, revoking and the cache stop together"
        found.append(Finding("failure", setting, value, problem, "set maxmemory-policy volatile-lru"))
    elif value.startswith("allkeys-"):
        problem = (
            "a full Redis drops what has no time to live too: the generations, and with them all that is remembered"
        )
        found.append(Finding("warning", setting, value, problem, "set maxmemory-policy volatile-lru"))
    return found


def _skew(setting: str, name: str, ahead_s: float) -> Iterator[Finding]:
    if abs(ahead_s) >= _SKEW_S:
        off = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
        yield Finding(
            "failure" if abs(ahead_s) >= _BAD_SKEW_S else "warning",
            setting,
            f"{ahead_s:+.0f} s",
            f"the clock of {name} is {off}: times in records, expiries and tokens of replicas do not agree",
            "run chrony or systemd-timesyncd on both",
        )


def _away(setting: str, detail: str) -> Finding:
    return Finding("failure", setting, _AWAY, detail, "start it, or correct the address")
