"""Every failure in one shape: RFC 9457 problems, and OpenAI's error object under `/v1`."""

import logging
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from app.api.visit import visit_of
from app.errors import (
    TYPE_BASE,
    FieldFault,
    InvalidFields,
    InvalidRequest,
    MnemosineError,
    ModelError,
    NotAuthenticated,
    NotFound,
    UnsupportedMedia,
)

_log = logging.getLogger(__name__)

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class _HttpError(MnemosineError):
    """What the routing itself refuses (404, 405, …), in our shape."""

    def __init__(self, status: int, detail: str, title: str, code: str) -> None:
        super().__init__(detail)
        self.status = status  # pyright: ignore[reportAttributeAccessIssue] - a class constant elsewhere
        self.title = title  # pyright: ignore[reportAttributeAccessIssue]
        self.code = code  # pyright: ignore[reportAttributeAccessIssue]


def add_problem_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Make every failure of `app` leave in the one shape.

    `routes` are all there are, so that a 405 can say which methods its path takes.
    """

    async def on_our_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, MnemosineError)
        return problem(request.scope, error)

    async def on_invalid_fields(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem(request.scope, _named_fields(error.errors()))

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = error.headers
        if error.status_code == 405:
            # The framework names the methods of the first route of this path; there may be one for each method.
            headers = {"Allow": ", ".join(_methods_of(request.scope["path"], routes))}
        return problem(request.scope, _from_http(error), headers=headers)

    async def on_leaving(request: Request, error: Exception) -> Response:
        # Nobody reads this any more; it is no failure of ours, to be logged and counted as one.
        return problem(request.scope, InvalidRequest("the client left before the body had arrived"))

    async def on_anything(request: Request, error: Exception) -> Response:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(request.scope, internal_error())

    app.add_exception_handler(MnemosineError, on_our_error)
    app.add_exception_handler(RequestValidationError, on_invalid_fields)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ClientDisconnect, on_leaving)
    app.add_exception_handler(Exception, on_anything)


def _methods_of(path: str, routes: Sequence[BaseRoute]) -> list[str]:
    found = [route for route in routes if isinstance(route, Route) and route.path_regex.match(path)]
    return sorted({method for route in found for method in route.methods or ()})


def internal_error() -> MnemosineError:
    """The answer to what nobody expected; the request id leads to the log, nothing else leaves."""
    return MnemosineError("something went wrong here; the request id finds it in the server's log")


def problem(scope: Mapping[str, Any], error: MnemosineError, *, headers: Mapping[str, str] | None = None) -> Response:
    """`error` as a response for the request of `scope`, with the headers that help the caller."""
    visit = visit_of(scope)
    visit.story.error = error.code
    log_provider_failure(error)
    sent = dict(headers or {})
    if error.retry_after_s is not None:
        sent["Retry-After"] = str(max(1, ceil(error.retry_after_s)))
        # The OpenAI SDKs look at this one first.
        sent["retry-after-ms"] = str(max(1, ceil(error.retry_after_s * 1000)))
    if error.retry_useful is False:
        sent["x-should-retry"] = "false"
    if isinstance(error, NotAuthenticated):
        sent["WWW-Authenticate"] = "Bearer"
    if str(scope.get("path", "")).startswith("/v1/"):
        body, media_type = openai_error(error), "application/json"
    else:
        body, media_type = problem_object(error, visit.request_id), "application/problem+json"
    return Response(to_json(body), error.status, headers=sent, media_type=media_type)


def log_provider_failure(error: MnemosineError) -> None:
    """Tell the log what the model's provider did, where `error` is its doing; at most once a second is shown."""
    if isinstance(error, ModelError):
        _log.warning("a prompt failed: %s (%s)", error.detail, error.code)


def problem_object(error: MnemosineError, request_id: str) -> dict[str, object]:
    """`error` as RFC 9457 writes it."""
    body: dict[str, object] = {
        "type": TYPE_BASE + error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "request_id": request_id,
    }
    if error.errors:
        body["errors"] = [{"field": fault.field, "message": fault.message} for fault in error.errors]
    return body


def openai_error(error: MnemosineError) -> dict[str, object]:
    """`error` as OpenAI's clients read it."""
    message = error.detail
    if error.errors:
        message = "; ".join(f"{fault.field}: {fault.message}" for fault in error.errors)
    return {
        "error": {
            "message": message,
            "type": _OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error"),
            "param": error.errors[0].field if error.errors else None,
            "code": error.code.replace("-", "_"),
        }
    }


def _named_fields(errors: Sequence[Any]) -> InvalidFields:
    """Name each field at fault; what the client sent is not echoed."""
    faults = [
        FieldFault(
            ".".join(str(step) for step in fault["loc"][1:]) or str(fault["loc"][0]),
            str(fault["msg"]).removeprefix("Value error, "),
        )
        for fault in errors
    ]
    return InvalidFields("some fields are missing, unknown or out of bounds", errors=faults[:50])


def _from_http(error: HTTPException) -> MnemosineError:
    match error.status_code:
        case 404:
            return NotFound("there is no such path")
        case 405:
            return _HttpError(405, "this path does not take this method", "Method not allowed", "method-not-allowed")
        case 415:
            return UnsupportedMedia("send application/json")
        case 401:
            return NotAuthenticated("send Authorization: Bearer with a token or an API key")
        case status:
            return _HttpError(status, str(error.detail), "Refused", "refused")
