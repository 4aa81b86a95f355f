"""The OpenAPI document: what FastAPI writes of the routes, and every way in which they can fail."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from app.api.dependencies import ASKS_A_MODEL, ASKS_FOR_MORE, ASKS_WHO
from app.api.idempotency import IdempotentRoute

_TITLES = {
    400: "The request cannot be read, or was not meant for this host",
    401: "No credentials, or none that are valid now",
    403: "The caller may not do this",
    404: "Not there, or not the caller's",
    409: "The present state of things forbids it",
    413: "The body is larger than `MAX_REQUEST_BYTES`",
    415: "Not the media type that the route takes, or compressed",
    422: "Fields are missing, unknown or out of bounds; `errors` names them",
    429: "Over a rate limit or a budget, or the model's provider is; `Retry-After` says when to come back",
    500: "A fault of the server; its log knows the request id",
    502: "The model's provider failed",
    503: "Something that is needed is away, or too much is waiting; `Retry-After` says when to come back",
    504: "The model's provider did not answer in time",
}

_PROBLEM = "Problem"
_OPENAI_ERROR = "OpenAIError"

_SCHEMAS: dict[str, dict[str, Any]] = {
    _PROBLEM: {
        "title": _PROBLEM,
        "description": "A failure, as RFC 9457 writes it.",
        "type": "object",
        "required": ["type", "title", "status", "detail", "request_id"],
        "properties": {
            "type": {"type": "string", "description": "Stable; what a program compares."},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "request_id": {"type": "string"},
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["field", "message"],
                    "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
                },
            },
        },
    },
    _OPENAI_ERROR: {
        "title": _OPENAI_ERROR,
        "description": "A failure, as OpenAI's clients read it.",
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": "string"},
                },
            }
        },
    },
}
_OF_FASTAPI = ("HTTPValidationError", "ValidationError")
_HEADERS = {
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}},
}


def complete_document(api: FastAPI, routes: Iterable[object]) -> None:
    """Let the OpenAPI document of `api` name every status that each of `routes` can answer with.

    What a route is made of tells nearly all of them: who may call it, what it reads, whether it asks a model. A route
    that can refuse in a way of its own says so in its `responses`.
    """
    plain = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = plain()
            for route in routes:
                if isinstance(route, APIRoute) and route.include_in_schema:
                    for method in route.methods or ():
                        _complete(document["paths"][route.path_format][method.lower()], route)
            schemas = document["components"]["schemas"]
            for name in _OF_FASTAPI:
                schemas.pop(name, None)
            schemas.update(_SCHEMAS)
        assert api.openapi_schema is not None
        return api.openapi_schema

    api.openapi = openapi


def _complete(operation: dict[str, Any], route: APIRoute) -> None:
    answers: dict[str, Any] = operation["responses"]
    answers.pop("422", None)
    for status in sorted(_failures(route) | {int(status) for status in answers if int(status) in _TITLES}):
        if "content" not in answers.get(str(status), {}):
            answers[str(status)] = _failure(status, route)
    operation["responses"] = {status: answers[status] for status in sorted(answers)}


def _failures(route: APIRoute) -> set[int]:
    # The front door refuses bodies wherever they come, hosts too, and may be at its bounds.
    failures = {400, 413, 415, 500, 503}
    asked = set(_calls(route.dependant))
    fields = route.dependant
    if ASKS_WHO in asked:
        failures |= {401, 429}
    if ASKS_FOR_MORE & asked:
        failures |= {403}
    if fields.path_params:
        failures |= {404}
    bounded = [field for field in fields.path_params if field.field_info.metadata]
    if route.body_field is not None or bounded or any(part.query_params for part in _dependants(fields)):
        failures |= {422}
    if ASKS_A_MODEL in asked:
        failures |= {404, 422, 502, 504}
    if isinstance(route, IdempotentRoute) and "POST" in (route.methods or ()):
        failures |= {409}
    return failures


def _dependants(dependant: Dependant) -> Iterable[Dependant]:
    yield dependant
    for part in dependant.dependencies:
        yield from _dependants(part)


def _calls(dependant: Dependant) -> Iterable[object]:
    return (part.call for part in _dependants(dependant))


def _failure(status: int, route: APIRoute) -> dict[str, Any]:
    openai = route.path.startswith("/v1/")
    schema = {"$ref": f"#/components/schemas/{_OPENAI_ERROR if openai else _PROBLEM}"}
    media_type = "application/json" if openai else "application/problem+json"
    failure: dict[str, Any] = {"description": _TITLES[status], "content": {media_type: {"schema": schema}}}
    if status in {429, 503}:
        failure["headers"] = _HEADERS
    return failure
