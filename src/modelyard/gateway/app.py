"""The application behind everything that is not an inference POST: health, metrics, models, /admin, the page.

Built by compose and handed to the server, which has decided before who may come in. All errors leave in
the shape of the API that was called, also those of the framework: unknown routes, wrong methods, bad bodies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import cache
from threading import Lock

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from modelyard.config import Key
from modelyard.errors import (
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModelyardError,
    NotFound,
    RequestError,
)
from modelyard.gateway import reference
from modelyard.gateway.admin import admin_router, needs_json
from modelyard.gateway.api import api_of
from modelyard.gateway.cache import cache_router
from modelyard.gateway.catalog import Catalog
from modelyard.gateway.engines_routes import Engines, add_engines
from modelyard.gateway.exchange import Headers
from modelyard.gateway.kept_plans import Plans
from modelyard.gateway.keys_routes import Keys, add_keys
from modelyard.gateway.listing import listing_router
from modelyard.gateway.live import LiveConfig
from modelyard.gateway.names import Names
from modelyard.gateway.paths import MODELS, AsSent, reserved
from modelyard.gateway.prefetch import add_prefetch
from modelyard.gateway.quantize_route import add_quantize
from modelyard.gateway.registry_control import Control
from modelyard.gateway.registry_routes import add_models
from modelyard.gateway.snapshot import Snapshot
from modelyard.gateway.tasks_routes import add_tasks
from modelyard.gateway.usage_routes import add_usage
from modelyard.gateway.version_routes import add_versions
from modelyard.registry.usage import UsageBook
from modelyard.runtime.driver import Driver
from modelyard.runtime.tasks import Tasks
from modelyard.store import Store
from modelyard.telemetry.metrics import Metrics
from modelyard.wire.json_head import parse


def build_app(
    driver: Driver,
    names: Names,
    live: LiveConfig,
    metrics: Metrics,
    *,
    store: Store,
    catalog: Catalog,
    tasks: Tasks,
    usage: UsageBook,
    keys: Keys,
    engines: Engines,
) -> FastAPI:
    """The control surface over one driver, whose gauges `metrics` shows from now on. Must be called on the
    driver's event loop. `tasks` are closed by their owner."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.add_middleware(AsSent)
    snapshot = Snapshot(driver, names, live, catalog)
    metrics.snapshot = snapshot.gauges
    control = Control(catalog, tasks, driver, names, snapshot)
    routers = (
        listing_router(names, snapshot, metrics),
        registry_router(control, lambda: live.keys, usage, keys, engines),
        cache_router(store, control),
        admin_router(driver, names, snapshot, live, Plans(driver), catalog.bring),
    )
    for router in routers:
        app.include_router(router)
    app.state.routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    _add_document(app, routers, live)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_error)
    return app


def _add_document(app: FastAPI, routers: Sequence[APIRouter], live: LiveConfig) -> None:
    one_at_a_time = Lock()

    @cache
    def rendered(keys: bool) -> bytes:
        return orjson.dumps(reference.document(routers, keys=keys))

    def described(keys: bool) -> bytes:
        # FastAPI silences warnings meanwhile, for all threads: two at once would undo each other's silence.
        with one_at_a_time:
            return rendered(keys)

    @app.get("/openapi.json")
    async def openapi_document() -> Response:
        return Response(await asyncio.to_thread(described, bool(live.keys)), media_type="application/json")


def registry_router(
    control: Control, in_force: Callable[[], Collection[Key]], usage: UsageBook, keys: Keys, engines: Engines
) -> APIRouter:
    """Models as data, their versions, long work, usage, keys, engine profiles. Of two routes that fit a path
    the first takes it: what goes on behind a name comes before the name alone."""
    router = APIRouter(dependencies=[Depends(needs_json)])
    add_versions(router, control)
    add_quantize(router, control)
    add_models(router, control)
    add_prefetch(router, control)
    add_tasks(router, control, in_force)
    add_usage(router, control, usage)
    add_keys(router, control, keys)
    add_engines(router, control, engines)
    return router


def _answer(request: Request, error: ModelyardError) -> Response:
    status, headers, body = api_of(request.url.path, Headers(request.headers.raw)).error(error)
    return Response(
        body, status, {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    )


async def _on_http_error(request: Request, error: Exception) -> Response:
    """The framework's own refusals."""
    assert isinstance(error, HTTPException)
    here = f"{request.method} {request.url.path}"
    if error.status_code == NotFound.status:
        return _answer(request, NotFound(f"There is no {here}; /docs lists what there is."))
    if error.status_code == MethodNotAllowed.status:
        allowed = _allowed(request)
        message = f"{here} is not possible; this path takes {allowed or 'other methods'}."
        return _answer(request, MethodNotAllowed(message, allowed=allowed))
    if error.status_code == InvalidRequest.status and (said := await _misread(request)):
        return _answer(request, said)
    kind = InvalidRequest if error.status_code < InternalError.status else InternalError
    return _answer(request, kind(f"{here}: {error.detail}"))


def _allowed(request: Request) -> str:
    """The methods that this path takes, over all routes."""
    path = request.scope["path"]
    if path.startswith(MODELS) and (methods := reserved(path)):
        return methods
    fit = (route for route in request.app.state.routes if route.path_regex.match(path))
    found = {method for route in fit for method in route.methods}
    return ", ".join(sorted(found))


async def _misread(request: Request) -> InvalidRequest | None:
    """What the lanes would say of a body that is no JSON object; None when it is one."""
    try:
        parse(await request.body())
    except InvalidRequest as error:
        return error
    return None


async def _on_invalid(request: Request, error: Exception) -> Response:
    """What is wrong with a request, in one line, with the place of the first problem as `param`."""
    assert isinstance(error, RequestValidationError)
    problems = [
        (".".join(str(part) for part in problem["loc"]), str(problem["msg"])) for problem in error.errors()
    ]
    if any(problem["type"] == "json_invalid" for problem in error.errors()) and (
        said := await _misread(request)
    ):
        return _answer(request, said)
    listed = "; ".join(f"{place}: {message}" for place, message in problems)
    invalid: RequestError = InvalidRequest(
        f"{request.method} {request.url.path}: {listed}.", param=problems[0][0] if problems else None
    )
    return _answer(request, invalid)


async def _on_error(request: Request, error: Exception) -> Response:
    """Our own errors, and bugs. The framework raises them on after the answer: the server logs the bugs. (A
    handler of its own for ModelyardError would hide from the server what stopped a body; see the bridge.)"""
    if isinstance(error, ModelyardError):
        return _answer(request, error)
    return _answer(request, InternalError("The server failed on this request; its log says why."))
