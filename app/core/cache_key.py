"""The name of an answer: equal for equal questions of one scope, and for nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

_VERSION = b"mnemosine-cache-1"


@dataclass(frozen=True, slots=True)
class CacheKey:
    """`digest` covers every ingredient; scope and agent stand beside it to be checked on read and counted."""

    digest: bytes
    scope: str
    agent: str


def cache_key(
    *,
    scope: str,
    agent: str,
    revision: str,
    models: Sequence[str],
    instructions: str | None,
    prompt: str,
    history: object = None,
    settings: Mapping[str, object] | None = None,
    output_schema: object = None,
    tools: object = None,
) -> CacheKey:
    """The key of one question. `scope` is `user:<id>` or `shared:<agent>`, `models` the chain with base URLs.

    Each ingredient is preceded by its length, so that no two lists of ingredients give the same bytes; the order of
    keys inside JSON objects does not matter. Whatever names only this one request (ids, times) stays outside.
    """
    digest = sha256(_VERSION)
    for part in (scope, agent, revision, list(models), instructions, history, prompt, settings, output_schema, tools):
        written = json.dumps(part, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        digest.update(len(written).to_bytes(8, "big"))
        digest.update(written)
    return CacheKey(digest.digest(), scope, agent)
