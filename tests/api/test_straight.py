"""Routes whose arguments are worked out once answer as FastAPI's do, and the hot ones are among them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.api.json_route import Body, JsonRoute
from app.api.problems import add_problem_handlers
from app.api.straight import straight
from app.api.v1 import agent
from app.api.visit import open_visit
from tests.application import Application, open_application


class Order(Body):
    article: str
    pieces: int = 1


class Receipt(BaseModel):
    article: str
    pieces: int
    shop: str
    note: str | None = None


calls: list[str] = []


async def shop(request: Request) -> str:
    calls.append("shop")
    return request.headers.get("x-shop", "corner")


async def till(name: Annotated[str, Depends(shop)]) -> str:
    return f"till of {name}"


def application(route_class: type[APIRoute]) -> FastAPI:
    api = FastAPI()
    router = APIRouter(route_class=route_class)

    @router.post("/orders", status_code=201)
    async def order(  # pyright: ignore[reportUnusedFunction]
        body: Order, name: Annotated[str, Depends(shop)], at: Annotated[str, Depends(till)], response: Response
    ) -> Receipt:
        response.headers["X-Till"] = at
        return Receipt(article=body.article, pieces=body.pieces, shop=name)

    api.include_router(router)
    add_problem_handlers(api, router.routes)
    return api


def with_visit(api: FastAPI) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            open_visit(scope, b"one")
        await api(scope, receive, send)

    return app


async def answered(route_class: type[APIRoute], body: Any) -> Any:
    transport = httpx2.ASGITransport(with_visit(application(route_class)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        reply = await client.post("/orders", json=body, headers={"X-Shop": "market"})
    return reply.status_code, reply.json(), dict(reply.headers)


@pytest.mark.parametrize(
    "body",
    [
        {"article": "lamp"},
        {"article": "lamp", "pieces": 3},
        {},
        {"article": 1},
        {"article": "x", "more": 1},
        [],
        7,
    ],
)
async def test_it_answers_as_fastapi_does(body: Any) -> None:
    calls.clear()
    ours = await answered(JsonRoute, body)
    assert calls.count("shop") <= 1
    assert ours == await answered(APIRoute, body)


def test_the_prompt_is_worked_out() -> None:
    (route,) = [route for route in agent.router.routes if isinstance(route, APIRoute)]
    assert straight(route) is not None


def test_what_needs_more_is_left_to_fastapi() -> None:
    router = APIRouter()

    @router.post("/a")
    async def a(body: Order, language: Annotated[str, Header()]) -> Receipt:  # pyright: ignore[reportUnusedFunction]
        raise NotImplementedError

    @router.post("/b/{name}")
    async def b(body: Order, name: str) -> Receipt:  # pyright: ignore[reportUnusedFunction]
        raise NotImplementedError

    assert [straight(route) for route in router.routes if isinstance(route, APIRoute)] == [None, None]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Application]:
    async with open_application(tmp_path / "data") as application:
        yield application


async def test_a_prompt_with_wrong_fields_names_them(opened: Application) -> None:
    reply = await opened.client.post(
        "/api/v1/agent/prompt", json={"message": "x", "model_settings": {"temperature": 9}, "colour": "red"}
    )
    assert reply.status_code == 422
    assert {fault["field"] for fault in reply.json()["errors"]} == {"model_settings.temperature", "colour"}


async def test_who_may_not_come_in_does_not_hear_what_is_wrong_with_the_fields(opened: Application) -> None:
    reply = await opened.anonymous.post("/api/v1/agent/prompt", json={"colour": "red"})
    assert reply.status_code == 401
