"""The application behind everything that is not an inference POST: health, metrics, models, /admin, the page.

Built by compose and handed to the server, which has decided before who may come in. All errors leave in
OpenAI's shape, also those of the framework: unknown routes, wrong methods, malformed bodies.
"""

from __future__ import annotations

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from modelyard import __version__
from modelyard.config import Config
from modelyard.errors import (
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModelyardError,
    NotFound,
    RequestError,
)
from modelyard.gateway.admin import admin_router
from modelyard.gateway.listing import listing_router
from modelyard.gateway.names import Names
from modelyard.gateway.openai import error_body
from modelyard.gateway.snapshot import Snapshot
from modelyard.runtime.driver import Driver
from modelyard.telemetry.metrics import Metrics

_DESCRIPTION = """One address in front of many language models on few GPUs.

Requests for answers (`/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/rerank`) follow
OpenAI's API; the server streams them past this application, so they are not listed here."""


def build_app(driver: Driver, names: Names, config: Config, metrics: Metrics) -> FastAPI:
    """The control surface over one driver. Must be called on the driver's event loop."""
    app = FastAPI(
        title="Modelyard",
        version=__version__,
        description=_DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        # The server checks keys before this application is reached; this only tells the reference page.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if config.keys else [],
    )
    snapshot = Snapshot(driver, names)
    app.include_router(listing_router(names, snapshot, metrics))
    app.include_router(admin_router(driver, names, snapshot))
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_error)
    return app


def _answer(error: ModelyardError) -> Response:
    status, headers, body = error_body(error)
    return Response(
        body, status, {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    )


async def _on_http_error(request: Request, error: Exception) -> Response:
    """The framework's own refusals."""
    assert isinstance(error, HTTPException)
    here = f"{request.method} {request.url.path}"
    if error.status_code == NotFound.status:
        return _answer(NotFound(f"There is no {here}; /docs lists what there is."))
    if error.status_code == MethodNotAllowed.status:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{here} is not possible; this path takes {allowed or 'other methods'}."
        return _answer(MethodNotAllowed(message, allowed=allowed))
    kind = InvalidRequest if error.status_code < InternalError.status else InternalError
    return _answer(kind(f"{here}: {error.detail}"))


async def _on_invalid(request: Request, error: Exception) -> Response:
    """What is wrong with a request, in one line, with the place of the first problem as `param`."""
    assert isinstance(error, RequestValidationError)
    problems = [
        (".".join(str(part) for part in problem["loc"]), str(problem["msg"])) for problem in error.errors()
    ]
    listed = "; ".join(f"{place}: {message}" for place, message in problems)
    invalid: RequestError = InvalidRequest(
        f"{request.method} {request.url.path}: {listed}.", param=problems[0][0] if problems else None
    )
    return _answer(invalid)


async def _on_error(request: Request, error: Exception) -> Response:
    """Our own errors, and bugs. The framework raises them on after the answer: the server logs the bugs. (A
    handler of its own for ModelyardError would hide from the server what stopped a body; see the bridge.)"""
    if isinstance(error, ModelyardError):
        return _answer(error)
    return _answer(InternalError("The server failed on this request; its log says why."))
