"""What an answer to a bad input has to be: no fault of the server, in the documented shape, of a documented status."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# What the server says of a request before any route is found; 307 leads from a path with a slash at its end.
_OF_NO_ROUTE = {307, 400, 404, 405, 408, 413, 414, 415, 431, 503}
_EXCUSED = {503}
"""A busy machine is overloaded at times."""
GARBAGE = "GARBAGE"
"""The method of what is no request, or may be any."""
_PROBLEM = {"type", "title", "status", "detail", "request_id"}
_OPENAI_ERROR = {"message", "type", "param", "code"}


@dataclass(slots=True)
class Judge:
    """Compares answers with the OpenAPI `document`; `statuses` says what it has seen."""

    document: dict[str, Any]
    statuses: Counter[int] = field(default_factory=Counter[int])
    _operations: list[tuple[re.Pattern[str], dict[str, Any]]] = field(
        default_factory=list[tuple[re.Pattern[str], dict[str, Any]]]
    )

    def __post_init__(self) -> None:
        # A path without parameters is meant where it matches: `/auth/me` before `/auth/{…}`.
        for path in sorted(self.document["paths"], key=lambda path: "{" in path):
            # Slashes belong to the names of models.
            part = ".+" if path.startswith("/v1/models/") else "[^/]+"
            pattern = re.compile(re.sub(r"\\\{\w+\\\}", part, re.escape(path)))
            self._operations.append((pattern, self.document["paths"][path]))

    def complaint(self, method: str, path: str, status: int, content_type: str, body: bytes) -> str | None:
        """What is wrong with an answer, in words; `None` where nothing is."""
        self.statuses[status] += 1
        if status >= 500 and status not in _EXCUSED:
            return f"{status}"
        if method != GARBAGE and status not in self.documented(method, path):
            return f"{status} is not documented for {method} {path}"
        if status < 400 or method == "HEAD":
            return None
        return self._shape(method, path, status, content_type, body)

    def check(self) -> None:
        """Raise `AssertionError` where more than one answer in a hundred was excused."""
        assert sum(self.statuses[status] for status in _EXCUSED) <= self.statuses.total() / 100, self.statuses

    def documented(self, method: str, path: str) -> set[int]:
        """The statuses that the document names for this request."""
        for pattern, operations in self._operations:
            if pattern.fullmatch(path) and method.lower() in operations:
                return {int(status) for status in operations[method.lower()]["responses"]} | (_OF_NO_ROUTE - {404, 405})
        return _OF_NO_ROUTE | {200, 304} if not path.startswith(("/api/", "/v1/")) else _OF_NO_ROUTE

    def _shape(self, method: str, path: str, status: int, content_type: str, body: bytes) -> str | None:
        try:
            problem = json.loads(body)
        except ValueError:
            return f"{status} without JSON: {body[:100]!r}"
        if status == 503 and (problem.get("reason") == "database" or "checks" in problem):  # what health routes say
            return None
        if "error" in problem and content_type == "application/json" and (path.startswith("/v1/") or method == GARBAGE):
            return None if problem["error"].keys() == _OPENAI_ERROR else f"{status} in another shape: {body[:200]!r}"
        if content_type != "application/problem+json" or not problem.keys() >= _PROBLEM or problem["status"] != status:
            return f"{status} in another shape, as {content_type}: {body[:200]!r}"
        return None
