"""The short way: a question that this caller asked before in the same bytes is answered without the framework."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from starlette.types import Scope

from app.api.gzip_pieces import compress_part, gzip_around
from app.api.limits import admit
from app.api.visit import Visit
from app.core.cache_service import Recalled
from app.core.callers import digest_of
from app.core.identity import new_id
from app.core.kept_answer import reply_of
from app.core.run import Answer, Caller

if TYPE_CHECKING:
    from app.runtime import Runtime

PATH = "/api/v1/agent/prompt"
ROUTE = f"POST {PATH}"

_TAKES_THE_LONG_WAY = frozenset(
    (b"cache-control", b"idempotency-key", b"origin", b"traceparent", b"transfer-encoding", b"content-encoding")
)
"""Headers that ask for more than the answer."""
_JSON = (b"application/json", b"application/json; charset=utf-8")
_COMPRESSED_FROM = 1024

_LINES = (
    b"content-type: application/json\r\nx-cache: HIT\r\ncache-status: mnemosine; hit; ttl=%d\r\nage: %d\r\n"
    b"%bcontent-length: %d\r\n"
)


@dataclass(slots=True)
class ShortAnswer:
    """A whole response, but for what is said of the visit and what every response says."""

    lines: bytes
    """The lines of its headers, each with its end."""
    body: bytes


@dataclass(slots=True)
class _Known:
    digest: bytes
    agent: str
    answer: Answer
    caller: Caller
    agents_version: int
    credential: bytes | None = None
    """The digest of the credential, once it was needed; the same bytes have the same one."""


class KnownQuestions:
    """Which key of the cache a request belongs to, by the SHA-256 of its credential, host and body.

    The long way teaches: it knows the agent, the caller and the key. The short way trusts that only for the same
    bytes, as long as caller and agents are the same, and still recognises the caller, counts the limits and looks
    the entry up, so that a revocation, a limit, a clear and an expiry hold as they do elsewhere. At most `capacity`
    requests are known (about 600 bytes each); the least recently used one makes room.
    """

    def __init__(self, *, compress: bool, capacity: int = 10_000) -> None:
        self._compress = compress
        self._capacity = capacity
        self._by_request: OrderedDict[bytes, _Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_request)

    def __contains__(self, request: bytes) -> bool:
        return request in self._by_request

    def may_be_known(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        """Whether the short way may answer this request at all, from its head alone."""
        if scope["path"] != PATH or scope["method"] != "POST" or scope["query_string"]:
            return False
        return self.may_be_known_by(headers)

    def may_be_known_by(self, headers: dict[bytes, bytes]) -> bool:
        """The same of a prompt, from its headers alone."""
        if headers.get(b"content-type") not in _JSON or b"authorization" not in headers:
            return False
        return _TAKES_THE_LONG_WAY.isdisjoint(headers)

    def digest(self, headers: dict[bytes, bytes], body: bytes) -> bytes:
        """What this request is known by."""
        credential, host = headers[b"authorization"], headers.get(b"host", b"")
        return sha256(b"%d:%b%d:%b%b" % (len(credential), credential, len(host), host, body)).digest()

    def learn(self, request: bytes, caller: Caller, answer: Answer, agents_version: int) -> None:
        """Remember that `request` of this caller was answered by what the cache keeps as `answer.kept_as`.

        Only of a hit: most questions come once, and those need no place.
        """
        if answer.cache != "HIT" or answer.kept_as is None or answer.conversation_id is not None:
            return
        # Its text stays in the cache alone, where it is bounded.
        told = replace(answer, output="", messages=None, attempts=())
        self._by_request[request] = _Known(answer.kept_as, answer.agent, told, caller, agents_version)
        self._by_request.move_to_end(request)
        if len(self._by_request) > self._capacity:
            self._by_request.popitem(last=False)

    async def answer(
        self, runtime: "Runtime", request: bytes, headers: dict[bytes, bytes], visit: Visit
    ) -> ShortAnswer | None:
        """The answer to a known request; `None` where the long way has to be taken.

        Raises what the long way would: an unknown credential, a limit.
        """
        found = self._find(runtime, request)
        credential = _credential(headers)
        if found is None or credential is None:
            return None
        known, held = found
        caller = await runtime.callers.recognise(credential)
        if not self._is_of(caller, known, request):
            return None
        await admit(runtime.limiter, visit, caller, "prompts")
        return self._tell(runtime, known, held, caller, request, headers, visit)

    def answer_at_once(
        self, runtime: "Runtime", request: bytes, headers: dict[bytes, bytes], visit: Visit
    ) -> ShortAnswer | None:
        """The same without waiting; also `None`, and nothing counted, where `answer` would wait or refuse."""
        found = self._find(runtime, request)
        if found is None:
            return None
        known, held = found
        if known.credential is None:
            credential = _credential(headers)
            if credential is None:
                return None
            known.credential = digest_of(credential)
        caller = runtime.callers.remembered(known.credential)
        if caller is None or not self._is_of(caller, known, request):
            return None
        allowance = runtime.limiter.admit_at_once(caller)
        if allowance is None:
            return None
        visit.allowance = allowance
        return self._tell(runtime, known, held, caller, request, headers, visit)

    def _find(self, runtime: "Runtime", request: bytes) -> tuple[_Known, Recalled] | None:
        known = self._by_request.get(request)
        if known is None:
            return None
        if known.agents_version != runtime.agent_room.result().agents.version:
            del self._by_request[request]
            return None
        held = runtime.cache.recall(known.digest, known.agent)
        return None if held is None else (known, held)

    def _is_of(self, caller: Caller, known: _Known, request: bytes) -> bool:
        if caller is known.caller or caller == known.caller:
            return True
        # Another role, other agents, other limits: the long way decides anew.
        self._by_request.pop(request, None)
        return False

    def _tell(
        self,
        runtime: "Runtime",
        known: _Known,
        held: Recalled,
        caller: Caller,
        request: bytes,
        headers: dict[bytes, bytes],
        visit: Visit,
    ) -> ShortAnswer:
        """Count the hit and write the response."""
        kept, age_s, left_s = held
        if request in self._by_request:
            self._by_request.move_to_end(request)
        runtime.cache.count_hit(known.agent, known.digest, len(kept.value), known.answer)
        runtime.runs.count_hit(caller, known.answer)
        visit.hit = (caller.id, known.answer, age_s, left_s)
        before = b'{"id":"%b",' % new_id().encode()
        reply = reply_of(kept.value)
        after = b',"processing_time_ms":%.3f}' % visit.elapsed_ms
        encoding = b""
        packed = False
        if self._compress and len(before) + len(reply) + len(after) >= _COMPRESSED_FROM:
            encoding = b"vary: Accept-Encoding\r\n"
            packed = b"gzip" in headers.get(b"accept-encoding", b"")
        if packed:
            compressed = kept.made or compress_part(reply)
            if not kept.made:
                runtime.cache.keep_beside(known.digest, kept, compressed)
            body = gzip_around(before, reply, compressed, after)
            encoding += b"content-encoding: gzip\r\n"
        else:
            body = before + reply + after
        return ShortAnswer(_LINES % (left_s, age_s, encoding, len(body)), body)


def _credential(headers: dict[bytes, bytes]) -> str | None:
    scheme, _, credential = headers[b"authorization"].decode("latin-1").partition(" ")
    return credential if scheme.lower() == "bearer" else None
