"""The reference of every endpoint: one OpenAPI document of the application's routes and of the lanes.

Used by `gateway/app.py` (`/openapi.json`, which the page at `/docs` shows) and by the generator of
docs/reference/http.md. It describes and serves nothing: the lanes' functions are never called.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Header, Path

from modelyard import __version__, errors
from modelyard.errors import BY_CODE, ModelyardError
from modelyard.gateway import bodies, views
from modelyard.gateway.auth import needs_no_key, scope_of
from modelyard.gateway.examples import add_examples
from modelyard.gateway.inference import COUNT_TOKENS, GENERATE, MESSAGES, PULL, SHOW, VERB
from modelyard.gateway.links import add_links
from modelyard.gateway.translation.reference import add_translation

DESCRIPTION = """One address in front of many language models on few GPUs.

Every error has the shape `ErrorView` and a stable `code`; `default` names those that any path may send. Under
`/v1/messages` errors have Anthropic's shape (`{"type": "error", "error": {"type", "message"}}`), under `/api`
Ollama's (`{"error": message}`), on the paths of translation LibreTranslate's: `error` is the message, and
`code`, `param` and `type` stand beside it."""

PREDICT = f"/v1/models/{{name}}{VERB}"
Responses = dict[int | str, dict[str, Any]]

EVERYWHERE: tuple[type[ModelyardError], ...] = (
    errors.InvalidRequest,
    errors.Unauthorized,
    errors.Forbidden,
    errors.HostNotAllowed,
    errors.OriginNotAllowed,
    errors.NotFound,
    errors.MethodNotAllowed,
    errors.RequestTimeout,
    errors.BodyTooLarge,
    errors.UriTooLong,
    errors.ExpectationFailed,
    errors.HeaderTooLarge,
    errors.InternalError,
    errors.TooManyConnections,
)
"""What any request may be refused with, whatever its path."""


def _kinds(*kinds: type[ModelyardError]) -> tuple[type[ModelyardError], ...]:
    return tuple(error for error in BY_CODE.values() if issubclass(error, kinds))


STARTING: tuple[type[ModelyardError], ...] = (
    *(errors.ModelNotFound, errors.ModelRemoved, errors.LoadFailed, errors.CannotLoad, errors.NeverFits),
    *(errors.NoMemory, errors.BrokenPromise, errors.ShuttingDown),
    *_kinds(errors.StoreError),
)
"""What stands in the way of a model that has to be in memory."""
SERVING: tuple[type[ModelyardError], ...] = (
    *(errors.ContextOverflow, errors.NotSupported, errors.NoAlternative),
    *_kinds(errors.Busy, errors.EngineError),
    *STARTING,
)
"""What a request for an answer may be refused with."""


def refusals(*refused: type[ModelyardError]) -> Responses:
    """The `responses` of a route that may raise these: by status, with each code and its meaning."""
    found: Responses = {}
    for error in sorted(refused, key=lambda one: (one.status, one.code)):
        answer = found.setdefault(error.status, {"model": views.ErrorView, "description": "", "x-codes": []})
        answer["description"] += f"`{error.code}`: {' '.join((error.__doc__ or '').split())}\n"
        answer["x-codes"].append(error.code)
    return found


# -- the lanes -----------------------------------------------------------------------------------------

Priority = Annotated[
    Literal["low", "normal", "high"] | None,
    Header(alias="X-Priority", description="The request's class, up to the key's `max_priority`."),
]
Progress = Annotated[
    Literal["sse"] | None,
    Header(alias="X-Progress", description="Events of `progress` while the request waits; with `stream`."),
]
_HEADERS = {
    "x-modelyard-request": "The request's id, for `explain`; refusals have it, too.",
    "x-modelyard-version": "The version that answered.",
    "x-modelyard-instance": "The instance that answered.",
    "x-modelyard-queue-ms": "How long the request waited, loading included.",
    "x-modelyard-load-ms": "How much of that was loading.",
}


def _lane(*more: type[ModelyardError], streams: bool = False) -> dict[str, Any]:
    """What a lane's route says beside its own text."""
    answer: dict[str, Any] = {
        "description": "The answer; an engine's own refusal comes with its own status.",
        "headers": {
            name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
        },
    }
    if streams:
        answer["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    return {"tags": ["inference"], "responses": {200: answer, **refusals(*SERVING, *more)}}


def lanes() -> APIRouter:
    """A route for each path of `inference` and of `translation`, to be described."""
    router = APIRouter()
    _add_plain(router)
    _add_translated(router)
    _add_ollama(router)
    add_translation(router, partial(_lane, errors.UnsupportedLanguage), Priority)
    return router


def _add_plain(router: APIRouter) -> None:
    @router.post("/v1/chat/completions", response_model=bodies.EngineAnswer, **_lane(streams=True))
    async def chat(body: bodies.Chat, priority: Priority = None, progress: Progress = None) -> None:
        """The next message of a conversation."""

    @router.post("/v1/completions", response_model=bodies.EngineAnswer, **_lane(streams=True))
    async def completion(
        body: bodies.Completion, priority: Priority = None, progress: Progress = None
    ) -> None:
        """How a text goes on."""

    @router.post("/v1/responses", response_model=bodies.EngineAnswer, **_lane(streams=True))
    async def responses(
        body: bodies.ResponseAsked, priority: Priority = None, progress: Progress = None
    ) -> None:
        """An answer in the shape of OpenAI's Responses API."""

    @router.post("/v1/embeddings", response_model=bodies.EngineAnswer, **_lane())
    async def embedding(body: bodies.Embedding, priority: Priority = None) -> None:
        """Vectors of texts."""

    @router.post("/v1/rerank", response_model=bodies.EngineAnswer, **_lane())
    async def rerank(body: bodies.Rerank, priority: Priority = None) -> None:
        """How well each document answers a query."""

    @router.post("/tokenize", response_model=bodies.EngineAnswer, **_lane())
    async def tokenize(body: bodies.Tokenize, priority: Priority = None) -> None:
        """The tokens of a text."""

    @router.post("/detokenize", response_model=bodies.EngineAnswer, **_lane())
    async def detokenize(body: bodies.Detokenize, priority: Priority = None) -> None:
        """The text of tokens."""


def _add_translated(router: APIRouter) -> None:
    @router.post(GENERATE, response_model=bodies.Generated, **_lane(errors.NotRunning, streams=True))
    async def generate(body: bodies.Generate, priority: Priority = None, progress: Progress = None) -> None:
        """The shortest way to some text."""

    @router.post(MESSAGES, response_model=bodies.EngineAnswer, **_lane(streams=True))
    async def messages(
        body: bodies.MessageAsked, priority: Priority = None, progress: Progress = None
    ) -> None:
        """The next message of a conversation, in the shape of Anthropic's API."""

    @router.post(COUNT_TOKENS, response_model=bodies.Counted, **_lane())
    async def count_tokens(body: bodies.Message, priority: Priority = None) -> None:
        """The tokens that such a message takes, counted by the model's engine."""

    @router.post(PREDICT, response_model=bodies.EngineAnswer, **_lane(streams=True))
    async def predict(
        name: Annotated[str, Path(description="A model's name or alias, `name@version` or `name:tag`.")],
        body: bodies.Predict,
        priority: Priority = None,
        progress: Progress = None,
    ) -> None:
        """An answer of this model or version, whichever its endpoint: its body is known by its fields
        (`messages`, `prompt`, `input`, `query` and `documents`, `content`, `tokens`, `q` and `target`)."""


def _lines(*more: type[ModelyardError], streams: bool = True) -> dict[str, Any]:
    """What a lane of Ollama's API says beside its own text."""
    answer: dict[str, Any] = {"description": "The answer, in the shape of Ollama's API."}
    if streams:
        answer["content"] = {"application/x-ndjson": {"schema": {"type": "string"}}}
    return {"tags": ["ollama"], "responses": {200: answer, **refusals(*more)}}


def _add_ollama(router: APIRouter) -> None:
    @router.post("/api/chat", response_model=bodies.EngineAnswer, **_lines(*SERVING))
    async def ollama_chat(body: bodies.OllamaChat, priority: Priority = None) -> None:
        """The next message of a conversation."""

    @router.post("/api/generate", response_model=bodies.EngineAnswer, **_lines(*SERVING))
    async def ollama_generate(body: bodies.OllamaGenerate, priority: Priority = None) -> None:
        """An answer to one prompt."""

    @router.post("/api/embed", response_model=bodies.EngineAnswer, **_lines(*SERVING, streams=False))
    async def ollama_embed(body: bodies.OllamaEmbed, priority: Priority = None) -> None:
        """Vectors of texts."""

    @router.post("/api/embeddings", response_model=bodies.EngineAnswer, **_lines(*SERVING, streams=False))
    async def ollama_embeddings(body: bodies.OllamaEmbeddings, priority: Priority = None) -> None:
        """The vector of one text, as older clients ask for it."""

    found = (errors.ModelNotFound, errors.CannotLoad, errors.ShuttingDown)

    @router.post(SHOW, response_model=bodies.EngineAnswer, **_lines(*found, streams=False))
    async def ollama_show(body: bodies.OllamaAsked) -> None:
        """What is known of a model."""

    @router.post(PULL, response_model=bodies.EngineAnswer, **_lines(*found, *_kinds(errors.StoreError)))
    async def ollama_pull(body: bodies.OllamaStreaming) -> None:
        """Fetch the files of a configured model ahead."""


# -- the document ---------------------------------------------------------------------------------------


def document(routers: Iterable[APIRouter], *, keys: bool) -> dict[str, Any]:
    """The OpenAPI document of these routers and the lanes. `keys`: say which scope each path needs (the
    entries of `security`; an empty one takes any key)."""
    app = FastAPI(
        title="Modelyard",
        version=__version__,
        description=DESCRIPTION,
        responses={
            "default": {
                "model": views.ErrorView,
                "description": f"Any other error: {', '.join(f'`{error.code}`' for error in EVERYWHERE)}.",
            }
        },
    )
    for router in (lanes(), *routers):
        app.include_router(router)
    found = app.openapi()
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            if keys:
                operation["security"] = _security(method.upper(), path)
    add_links(found["paths"])
    add_examples(found)
    if keys:
        found["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return found


def _security(method: str, path: str) -> list[dict[str, list[str]]]:
    if needs_no_key(path):
        return []
    scope = scope_of(method, path)
    scopes = [scope.value] if scope is not None else []
    return [{"bearer": scopes}, {"x-api-key": scopes}]
