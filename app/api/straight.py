"""The arguments of a route, worked out when it is made rather than at every request.

FastAPI walks the tree of dependencies anew for each request, which costs more than all that Mnemosine does for a prompt
besides asking the model (benchmarks/). Here the walk is done once, for routes that need nothing else: a JSON body, the
request, the response's headers, and async dependencies that ask for the same. Any other route stays FastAPI's.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

_REQUEST, _RESPONSE, _BODY = 0, 1, 2
"""Where these stand among the values of one request; what dependencies give comes after them."""


@dataclass(frozen=True, slots=True)
class _Step:
    call: Callable[..., Awaitable[Any]]
    arguments: tuple[tuple[str, int], ...]
    """Names, and where their values stand."""


@dataclass(frozen=True, slots=True)
class Straight:
    """A route's body and the calls that lead to its answer, the endpoint last."""

    body: type[BaseModel] | None
    steps: tuple[_Step, ...]
    status: int

    async def answer(self, request: Request) -> Response:
        """The response to `request`, as FastAPI would give it. Raises what FastAPI would raise."""
        headers = Response()
        del headers.headers["content-length"]
        values: list[Any] = [request, headers, None]
        *before, endpoint = self.steps
        for step in before:
            values.append(await step.call(**{name: values[at] for name, at in step.arguments}))
        # Only now: who may not come in at all does not hear what is wrong with the fields.
        if self.body is not None:
            try:
                values[_BODY] = self.body.model_validate(await request.json(), from_attributes=True)
            except ValidationError as error:
                faults = error.errors(include_url=False, include_context=False)
                raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from error
        result: Any = await endpoint.call(**{name: values[at] for name, at in endpoint.arguments})
        if isinstance(result, Response):
            return result
        content = result.__pydantic_serializer__.to_json(result)
        response = Response(content, self.status, media_type="application/json")
        response.headers.raw.extend(headers.headers.raw)
        return response


def straight(route: APIRoute) -> Straight | None:
    """`route` worked out, or `None` where it needs more than this knows."""
    dependant, field = route.dependant, route.body_field
    body: Any = None if field is None else field.field_info.annotation
    if body is not None and not (isinstance(body, type) and issubclass(body, BaseModel)):
        return None
    answer = route.response_model
    if not (isinstance(answer, type) and issubclass(answer, BaseModel)) or route.dependencies:
        return None
    steps: list[_Step] = []
    placed: dict[Any, int] = {}
    if _plan(dependant, steps, placed) is None:
        return None
    return Straight(body, tuple(steps), route.status_code or 200)


def _plan(dependant: Dependant, steps: list[_Step], placed: dict[Any, int]) -> int | None:
    """Add the calls that `dependant` needs to `steps`; gives where its value will stand, or `None`."""
    call: Any = dependant.call
    if call in placed:
        return placed[call]
    function = call if iscoroutinefunction(call) else getattr(call, "__call__", None)  # noqa: B004 - an object's own
    if not iscoroutinefunction(function) or isasyncgenfunction(function) or not dependant.use_cache:
        return None
    more = (dependant.path_params, dependant.query_params, dependant.header_params, dependant.cookie_params)
    if any(more) or len(dependant.body_params) > 1 or dependant.background_tasks_param_name:
        return None
    if dependant.websocket_param_name or dependant.security_scopes_param_name:
        return None
    requests = (dependant.request_param_name, dependant.http_connection_param_name)
    arguments = [(name, _REQUEST) for name in requests if name]
    if dependant.response_param_name:
        arguments.append((dependant.response_param_name, _RESPONSE))
    arguments += [(field.name, _BODY) for field in dependant.body_params]
    for part in dependant.dependencies:
        at = None if part.body_params else _plan(part, steps, placed)
        if at is None:
            return None
        if part.name is not None:
            arguments.append((part.name, at))
    steps.append(_Step(call, tuple(arguments)))
    placed[call] = _BODY + len(steps)
    return placed[call]
