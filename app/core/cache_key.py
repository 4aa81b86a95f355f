"""The name of an answer: equal for equal questions of one scope, and for nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256

_VERSION = b"mnemosine-cache-2"
_MARK_BYTES = 6

INGREDIENTS = (
    "scope",
    "agent",
    "revision",
    "models",
    "instructions",
    "history",
    "prompt",
    "settings",
    "output_schema",
    "tools",
)


@dataclass(frozen=True, slots=True)
class CacheKey:
    """`digest` covers every ingredient; scope and agent stand beside it to be checked on read and counted."""

    digest: bytes
    scope: str
    agent: str
    written: tuple[bytes, ...] = field(repr=False, compare=False)
    """Each of `INGREDIENTS` as it went into the digest."""

    def marks(self) -> bytes:
        """A few bytes for each ingredient: enough to tell which of them differ between two keys, and nothing else."""
        return b"".join(blake2b(part, digest_size=_MARK_BYTES).digest() for part in self.written)


def differing(marks: bytes, other: bytes) -> tuple[str, ...]:
    """The ingredients in which two keys differ, from the marks of both."""
    return tuple(
        name
        for at, name in enumerate(INGREDIENTS)
        if marks[at * _MARK_BYTES : (at + 1) * _MARK_BYTES] != other[at * _MARK_BYTES : (at + 1) * _MARK_BYTES]
    )


def cache_key(
    *,
    scope: str,
    agent: str,
    revision: str,
    models: Sequence[str],
    instructions: str | None,
    prompt: object,
    history: object = None,
    settings: Mapping[str, object] | None = None,
    output_schema: object = None,
    tools: object = None,
) -> CacheKey:
    """The key of one question. `scope` is `user:<id>` or `shared`, `models` the chain with base URLs.

    Each ingredient is preceded by its length, so that no two lists of ingredients give the same bytes; the order of
    keys inside JSON objects does not matter. Whatever names only this one request (ids, times) stays outside.
    """
    digest = sha256(_VERSION)
    written: list[bytes] = []
    for part in (scope, agent, revision, list(models), instructions, history, prompt, settings, output_schema, tools):
        data = json.dumps(part, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
        written.append(data)
    return CacheKey(digest.digest(), scope, agent, tuple(written))
