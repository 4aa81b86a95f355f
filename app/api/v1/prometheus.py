"""`GET /metrics`: the numbers of the performance API for Prometheus."""

from fastapi import APIRouter, Request, Response

from app.api.dependencies import RuntimeDep
from app.core.exposition import CONTENT_TYPES, kind_for, render
from app.core.picture import LEVELS, Picture
from app.core.vitals import Vitals
from app.errors import NotAuthenticated

router = APIRouter(tags=["performance"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, 401: {}})
async def prometheus_metrics(runtime: RuntimeDep, request: Request) -> Response:
    """Give the numbers of `/performance/metrics` as Prometheus text, of all workers; OpenMetrics where asked for.

    Without login where bound to loopback, or where `METRICS_PUBLIC` is set.
    """
    if not runtime.settings.metrics_open:
        scheme, _, credential = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not credential:
            raise NotAuthenticated("send Authorization: Bearer with a token or an API key")
        await runtime.callers.recognise(credential)
    picture = await runtime.totals.read()
    kind = kind_for(request.headers.get("accept", ""))
    text = render(picture.total, _gauges(picture, runtime.totals.vitals), kind=kind, examples=picture.examples())
    return Response(text, media_type=CONTENT_TYPES[kind])


def _gauges(picture: Picture, vitals: Vitals | None) -> dict[str, float]:
    pool, cache = picture.part("agent_pool"), picture.part("cache")
    gauges: dict[str, float] = {
        "workers": len(picture.workers),
        "replicas": picture.replicas,
        "uptime_seconds": picture.uptime_s,
        **{name: picture.level(name) for name in LEVELS},
        **{f"agent_pool_{name}": pool.get(name, 0) for name in ("capacity", "size", "in_use")},
        "slots_in_use": sum(slot["in_use"] for slot in pool.get("slots", ())),
        **{f"cache_{name}": cache.get(name, 0) for name in ("entries", "bytes", "max_bytes")},
    }
    if vitals is not None:
        gauges |= {
            "system_cpu_percent": vitals.cpu_percent,
            "system_memory_percent": vitals.memory.percent,
            "system_disk_percent": vitals.disk.percent,
        }
    return gauges
