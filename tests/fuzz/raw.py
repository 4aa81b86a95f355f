"""Requests as no client would write them: hand-made JSON, bent heads, raw bytes; the same ones for the same seed."""

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.fuzz.judge import GARBAGE

# What is spliced into JSON as it stands.
_NASTY = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1e-999",
    "9" * 400,
    "-9223372036854775809",
    "9223372036854775808",
    "0.1e1",
    "-0",
    "1E400",
    "null",
    "true",
    "false",
    "[]",
    "{}",
    '""',
    '"\\ud800"',
    '"\\udfff"',
    '"\\u0000"',
    '"a\\u0000b"',
    '"\x7f"',
    '"\\uD83D\\uDE00"',
    '"\\uD83D"',
    "[[[[[[]]]]]]",
    "[" * 300 + "]" * 300,
    '{"a":' * 250 + "1" + "}" * 250,
    '"' + "x" * 3000 + '"',
    '{"": ""}',
    '{"__proto__": 1}',
    '"${7*7}{{7*7}}%s%n"',
    '"\'; DROP TABLE users; --"',
    '"../../../../etc/passwd"',
    '"http://127.0.0.1:1/"',
    '"<script>alert(1)</script>"',
    '"\\r\\nX-Injected: 1"',
    '{"$ref": "#"}',
    '["a", 1, null]',
    '"\\u202e"',
    '"\u2028"',
    "01",
    "+1",
    ".5",
    "1.",
    "'a'",
    '"offline"',
    '"default"',
    '"system"',
    '"test"',
    '"openai-chat:gpt-5"',
    '"user"',
    '"tool"',
    '"function"',
    '"image_url"',
    "0",
    "-1",
    "1",
    "2147483648",
    "1.5",
    "3e2",
]
_SEGMENTS = [
    "%00",
    "%ff",
    "%C0%AF",
    "..",
    "%2e%2e",
    "%2f",
    "%252f",
    "a%0d%0ab",
    "\u00e9".encode("utf-8").decode("latin-1"),
    "'",
    '"',
    "%ED%A0%80",
    "x" * 300,
    "-1",
    "0",
    "null",
    "undefined",
    "~",
    ";a=b",
    "*",
    "%",
    "%zz",
    "me",
    "admin",
]
_QUERIES = [
    "limit=0",
    "limit=-1",
    "limit=9999999999999999999999",
    "limit=NaN",
    "limit=1e3",
    "limit=%00",
    "cursor=%00",
    "cursor=",
    "cursor=%ff%fe",
    "cursor=AAAA",
    "cursor=" + "A" * 600,
    "range=1y",
    "period=%27",
    "agent=%00",
    "agent=" + "a" * 300,
    "a[]=1&a[]=2",
    "&&&===",
    "access_token=x",
    "%",
    "limit=1&limit=2",
    "agent=default",
    "range=5m",
]
_HEADERS = [
    b"Content-Type: text/plain",
    b"Content-Type: application/json; charset=utf-16",
    b"Content-Type: \xff\xfe",
    b"Content-Type: multipart/form-data; boundary=",
    b"Content-Type: application/x-www-form-urlencoded",
    b"Content-Type: application/merge-patch+json",
    b"Authorization: Bearer \xe9\xff",
    b"Authorization: Bearer",
    b"Authorization: bearer  a b",
    b"Authorization: Basic YTpi",
    b"Authorization: Bearer mn_" + b"a" * 5000,
    b"Authorization: Bearer a.b.c",
    b"Cookie: \x01=\x02",
    b"Accept: \xff",
    b"Accept: */*;q=NaN",
    b"Range: bytes=-1",
    b"Accept-Encoding: gzip, \xff",
    b"If-None-Match: *",
    b"Cache-Control: max-age=" + b"9" * 50,
    b"Cache-Control: no-store",
    b"Cache-Control: no-cache",
    b"Idempotency-Key: \xff",
    b"Idempotency-Key: " + b"k" * 300,
    b"Idempotency-Key: a",
    b"X-Request-ID: \xff\r\n",
    b"X-Request-ID: " + b"i" * 200,
    b"traceparent: 00-0-0-zz",
    b"traceparent: \xff",
    b"Content-Encoding: gzip",
    b"Expect: 100-continue",
    b"X-Forwarded-For: \xff, 1.2.3",
    b'Forwarded: for="_x"',
    b"Host: evil.example",
    b"Origin: null",
    b"Upgrade: websocket",
    b"Last-Event-ID: \xff",
    b"X-HTTP-Method-Override: DELETE",
    b"Accept-Language: " + b"a" * 4000,
    b"Transfer-Encoding: gzip",
]
_METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "BREW",
    "get",
    "PRI",
    "M-SEARCH",
]
_WHOLE_GARBAGE = [
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    b"\x00\x01\x02\r\n\r\n",
    b"GET  /  HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nA\x00B: c\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n",
    b"GET /\x80\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a b HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\r\n\x20folded: a\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET //evil.example/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET ? HTTP/1.1\r\nHost: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"HELO mail.example\r\n\r\n",
    b"*1\r\n$4\r\nPING\r\n\r\n",
]


@dataclass(frozen=True, slots=True)
class RawRequest:
    """Bytes to be sent whole; `method` and `path` are what a server can make of them."""

    method: str
    path: str
    sent: bytes
    kind: str


class RawRequests:
    """An endless row of bad requests to the operations of an OpenAPI `document`.

    `credentials` are header values, `None` among them for nobody; `known` are path parameters that exist.
    """

    def __init__(
        self, document: dict[str, Any], *, seed: int, credentials: list[str | None], known: dict[str, list[str]]
    ) -> None:
        self._random = random.Random(seed)
        self._schemas = document["components"]["schemas"]
        self._credentials = credentials
        self._known = known
        self._operations = [
            (method.upper(), path, operation)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        ]
        self._with_body = [operation for operation in self._operations if "requestBody" in operation[2]]
        self._kinds: dict[str, Callable[[str, str, bytes, list[bytes]], RawRequest]] = {
            "json": self._as_it_is,
            "bytes": self._bent_bytes,
            "path": self._bent_path,
            "headers": self._bent_headers,
            "method": self._other_method,
            "head": self._bent_head,
        }

    def __iter__(self) -> Iterator[RawRequest]:
        while True:
            if self._random.random() < 0.03:
                garbage = self._random.choice(_WHOLE_GARBAGE)
                yield RawRequest(GARBAGE, "*", garbage, "garbage")
                continue
            method, path, operation = self._random.choice(self._random.choice([self._operations, self._with_body]))
            path = re.sub(r"\{(\w+)\}", lambda found: self._parameter(found[1]), path)
            headers: list[bytes] = []
            credential = self._random.choice(self._credentials)
            if credential is not None:
                headers.append(b"Authorization: Bearer " + credential.encode())
            body, content_type = self._body(operation)
            if content_type:
                headers.append(b"Content-Type: " + content_type)
            kind = self._random.choice([*self._kinds] if body else ["path", "headers", "method", "head"])
            yield self._kinds[kind](method, path, body, headers)

    def _parameter(self, name: str) -> str:
        known = self._known.get(name, [])
        return self._random.choice(known) if known and self._random.random() < 0.5 else self._random.choice(["x", "0"])

    def _body(self, operation: dict[str, Any]) -> tuple[bytes, bytes]:
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            return self._json(self._example(content["application/json"]["schema"])), b"application/json"
        if content:
            values = [
                self._random.choice(["a", "%00", "%ff", "%ED%A0%80", "\\ud800", "x" * 2000, ""]) for _ in range(2)
            ]
            return "grant_type=password&username={}&password={}".format(*values).encode(), next(iter(content)).encode()
        return b"", b""

    def _example(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """A value that the schema would accept, more or less."""
        if "$ref" in schema:
            return self._example(self._schemas[schema["$ref"].rpartition("/")[2]], depth)
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self._example(self._random.choice(schema[several]), depth)
        if "enum" in schema or "const" in schema:
            return self._random.choice(schema.get("enum", [schema.get("const")]))
        match schema.get("type"):
            case "object" if depth < 6:
                properties: dict[str, Any] = schema.get("properties", {})
                wanted = [
                    name for name in properties if name in schema.get("required", ()) or self._random.random() < 0.4
                ]
                return {name: self._example(properties[name], depth + 1) for name in wanted}
            case "array" if depth < 6:
                return [self._example(schema.get("items", {}), depth + 1) for _ in range(self._random.randint(1, 2))]
            case "integer" | "number":
                return schema.get("minimum", schema.get("maximum", 1))
            case "boolean":
                return self._random.random() < 0.5
            case "null":
                return None
            case _:
                return self._random.choice(["default", "Hello", "a password of somebody", "2030-01-01T00:00:00Z"])

    def _json(self, value: Any) -> bytes:
        """`value` with some of its parts replaced by what no client should send."""
        marks = 0

        def bend(part: Any, chance: float) -> Any:
            nonlocal marks
            if self._random.random() < chance:
                marks += 1
                return f"@@{self._random.randrange(len(_NASTY))}@@"
            if isinstance(part, dict):
                bent: dict[str, Any] = {key: bend(inner, chance) for key, inner in part.items()}  # pyright: ignore[reportUnknownVariableType]
                if self._random.random() < 0.1:
                    bent[self._random.choice(["role", "id", "\x00", "", "user_id", "stream", "x" * 500])] = 1
                return bent
            if isinstance(part, list):
                return [bend(inner, chance) for inner in part]  # pyright: ignore[reportUnknownVariableType]
            return part

        text = json.dumps(bend(value, self._random.choice([0.0, 0.1, 0.3, 0.8])))
        text = re.sub(r'"@@(\d+)@@"', lambda found: _NASTY[int(found[1])], text)
        return text.encode("utf-8", "surrogatepass")

    def _written(self, method: str, path: str, body: bytes, headers: list[bytes], kind: str) -> RawRequest:
        lines = [method.encode() + b" " + path.encode("latin-1") + b" HTTP/1.1"]
        if not any(header.lower().startswith(b"host:") for header in headers):
            lines.append(b"Host: 127.0.0.1")
        lines += [b"Connection: close", *headers]
        # A bent length would have the server wait for the rest, see tests/test_slow_clients.py.
        if body or (method in {"POST", "PUT", "PATCH"} and kind != "head"):
            lines.append(b"Content-Length: %d" % len(body))
        return RawRequest(method, path.partition("?")[0], b"\r\n".join([*lines, b"", body]), kind)

    def _as_it_is(self, method: str, path: str, body: bytes, headers: list[bytes]) -> RawRequest:
        return self._written(method, path, body, headers, "json")

    def _bent_bytes(self, method: str, path: str, body: bytes, headers: list[bytes]) -> RawRequest:
        return self._written(method, path, self._bend(body), headers, "bytes")

    def _bent_path(self, method: str, path: str, body: bytes, headers: list[bytes]) -> RawRequest:
        segments = path.split("/")
        if self._random.random() < 0.5:
            segments[-1] = self._random.choice(_SEGMENTS)
        else:
            segments.insert(self._random.randrange(1, len(segments) + 1), self._random.choice(_SEGMENTS))
        bent = "/".join(segments)
        if self._random.random() < 0.5:
            bent += "?" + self._random.choice(_QUERIES)
        return self._written(method, bent, body, headers, "path")

    def _bent_headers(self, method: str, path: str, body: bytes, headers: list[bytes]) -> RawRequest:
        for header in self._random.sample(_HEADERS, self._random.randint(1, 4)):
            if not header.startswith(b"Transfer-Encoding") or not body:
                headers = [*headers, header.rstrip(b"\r\n")]
        return self._written(method, path, body, headers, "headers")

    def _other_method(self, method: str, path: str, body: bytes, headers: list[bytes]) -> RawRequest:
        other = self._random.choice(_METHODS)
        if other == "CONNECT":
            body = b""
        if self._random.random() < 0.3:
            path += "?" + self._random.choice(_QUERIES)
        return self._written(other, path, body, headers, "method")

    def _bent_head(self, method: str, path: str, body: bytes, headers: list[bytes]) -> RawRequest:
        """Bytes of the head itself; the end of it stays, so that the server need not wait for more."""
        whole = self._written(method, quote(path, safe="/%"), b"", headers, "head").sent
        bent = self._bend(whole[:-4]).replace(b"\r\n\r\n", b"\r\n")
        return RawRequest(GARBAGE, "*", bent + b"\r\n\r\n", "head")

    def _bend(self, data: bytes) -> bytes:
        bent = bytearray(data)
        for _ in range(self._random.randint(1, 4)):
            at = self._random.randrange(len(bent) + 1)
            match self._random.randrange(4):
                case 0 if at < len(bent):
                    bent[at] = self._random.randrange(256)
                case 1:
                    bent[at:at] = self._random.randbytes(self._random.randint(1, 4))
                case 2:
                    del bent[at : at + self._random.randint(1, 8)]
                case _:
                    bent[at:at] = self._random.choice(_NASTY).encode("utf-8", "surrogatepass")
        return bytes(bent)
