"""The dashboard and the playground: pages that a browser shows, served from memory under a strict policy."""

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response

from app.errors import NotFound

router = APIRouter(include_in_schema=False)

_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'; "
    "img-src 'self' data:; require-trusted-types-for 'script'"
)
"""Scripts and styles come from this server and stand in files of their own, so an injected one does not run. No
script may turn text into markup either."""

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_PAGES = {"/dashboard": "dashboard.html", "/dashboard/playground": "playground.html"}
_ASSETS = frozenset(
    ("common.js", "dashboard.js", "playground.js", "style.css", "icon.svg", "uPlot.iife.min.js", "uPlot.min.css")
)


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    headers: dict[str, str]
    etag: str


@cache
def _file(name: str) -> _File:
    folder = Path(__file__).parent
    path = folder / "vendor" / name if name.startswith("uPlot") else folder / name
    body = path.read_bytes()
    etag = f'"{sha256(body).hexdigest()[:16]}"'
    headers = {
        "Content-Type": f"{_TYPES[path.suffix]}; charset=utf-8",
        "Content-Security-Policy": _POLICY,
        # Asked for anew each time, and hardly ever sent anew.
        "Cache-Control": "no-cache",
        "ETag": etag,
    }
    return _File(body, headers, etag)


def _sent(request: Request, name: str) -> Response:
    file = _file(name)
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=file.headers)
    return Response(file.body, headers=file.headers)


@router.get("/dashboard")
@router.get("/dashboard/playground")
def page(request: Request) -> Response:
    """The page itself; it has no data before somebody signs in."""
    return _sent(request, _PAGES[request.scope["route"].path])


@router.get("/dashboard/assets/{name}")
def asset(request: Request, name: str) -> Response:
    """A script or style of the pages."""
    if name not in _ASSETS:
        raise NotFound("the dashboard has no such file")
    return _sent(request, name)
