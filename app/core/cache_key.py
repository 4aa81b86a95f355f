"""The name of an answer: equal for equal questions of one scope, and for nothing else."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import compress
from operator import ne

_VERSION = b"mnemosine-cache-2"

Marks = tuple[int, ...]
"""A number for each of `INGREDIENTS`, the same for the same bytes in this process."""

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

    def marks(self) -> Marks:
        """A number for each ingredient: enough to tell which of them differ between two keys, and nothing else."""
        return tuple(map(hash, self.written))


def fewest_differing(marks: Marks, others: Sequence[Marks]) -> tuple[str, ...]:
    """The ingredients in which a key differs from that of `others` which is nearest to it, from the marks of all."""
    nearest = min([tuple(map(ne, marks, other)) for other in others], key=sum)
    return tuple(compress(INGREDIENTS, nearest))


_json: Callable[[object], str] = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


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
        data = b"null" if part is None else _json(part).encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
        written.append(data)
    return CacheKey(digest.digest(), scope, agent, tuple(written))
