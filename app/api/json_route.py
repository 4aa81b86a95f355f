"""A route that reads JSON strictly: what FastAPI alone answers with a 500, or lets pass, is a clear 4xx here."""

from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import Annotated, Any

from fastapi import params
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from app.api.straight import straight
from app.errors import InvalidRequest, UnsupportedMedia

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRoute(APIRoute):
    """Refuses bodies that are not JSON by their type (415) or by their content (400), before any field is read.

    NaN, Infinity, lone surrogates, broken UTF-8, and nesting deeper than 200 are not JSON here; FastAPI alone
    answers 500 to several of these. The body is parsed once.
    """

    def get_route_handler(self) -> Handler:
        """FastAPI's handler behind the strict reader, where the route takes a JSON body at all."""
        if self._takes_json:
            return self.straight_handler or _reading(super().get_route_handler())
        return super().get_route_handler()

    @cached_property
    def straight_handler(self) -> Handler | None:
        """The whole of what answers a request, where that is worked out beforehand (`straight`)."""
        route = straight(self) if self._takes_json else None
        return None if route is None else _reading(route.answer)

    @property
    def _takes_json(self) -> bool:
        return self.body_field is not None and not isinstance(self.body_field.field_info, params.Form)


def _reading(handle: Handler) -> Handler:
    async def handle_json(request: Request) -> Response:
        return await handle(await _StrictRequest.read(request))

    return handle_json


class _StrictRequest(Request):
    _parsed: Any

    @classmethod
    async def read(cls, request: Request) -> "_StrictRequest":
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise UnsupportedMedia("send the body as Content-Type: application/json")
        strict = cls(request.scope, request.receive)
        body = await strict.body()
        try:
            strict._parsed = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise InvalidRequest(f"the body is not valid JSON: {error}") from error
        return strict

    async def json(self) -> Any:
        return self._parsed


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the NUL character")
    return text


Text = Annotated[str, AfterValidator(_storable)]
"""Text that every store can keep: PostgreSQL refuses NUL."""

Password = Annotated[Text, Field(min_length=8, max_length=1024)]
"""A password that somebody chooses; the hasher counts the bytes."""


class Body(BaseModel):
    """The base of every request model: unknown fields are refused, and so are numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)
