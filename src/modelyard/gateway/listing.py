"""What every client may read: health, metrics, the pages, and the models as Ollama lists them.

Mounted by `gateway/app.py`. Changes nothing.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST

from modelyard.gateway import views
from modelyard.gateway.health_check import add_health_check
from modelyard.gateway.names import Names
from modelyard.gateway.ollama_listing import add_ollama
from modelyard.gateway.snapshot import Snapshot
from modelyard.telemetry.metrics import Metrics

# A page brings its own style and script; whatever it holds, it can only talk to this server.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SHARED = ("page.css", "page.js")


@cache
def _text(name: str) -> str:
    """A page, with what all of them share put into it."""
    page, *shared = (
        files("modelyard.ui").joinpath(each).read_text(encoding="utf-8") for each in (name, *_SHARED)
    )
    for each, text in zip(_SHARED, shared, strict=True):
        page = page.replace(f"/* {each} */", text)
    return page


def _page(name: str) -> HTMLResponse:
    return HTMLResponse(_text(name), headers={"content-security-policy": _PAGE_POLICY})


def listing_router(names: Names, snapshot: Snapshot, metrics: Metrics) -> APIRouter:
    """The routes outside /admin."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def status_page() -> HTMLResponse:
        return _page("index.html")

    @router.get("/docs", include_in_schema=False)
    async def reference_page() -> HTMLResponse:
        return _page("docs.html")

    @router.head("/health", include_in_schema=False, response_model_exclude_none=True)
    @router.get("/health", tags=["health"], response_model_exclude_none=True)
    async def health() -> views.Health:
        """The process is up; what else is there says what is wrong."""
        return snapshot.health()

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", tags=["health"], responses={503: {"model": views.Readiness}})
    async def ready(response: Response) -> views.Readiness:
        """A request for at least one model could be served."""
        readiness = snapshot.readiness()
        response.status_code = 200 if readiness.ready else 503
        return readiness

    @router.get(
        "/metrics",
        tags=["health"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics_page() -> Response:
        """Prometheus metrics."""
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    add_health_check(router, names, snapshot)
    add_ollama(router, names, snapshot)
    return router
