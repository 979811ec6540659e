"""How each API says that something failed, and that a client has to wait: one object per API.

Called by the server (before a handler runs), by the serve loop and by the control surface, which find the API
of a request by its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import orjson

from modelyard.errors import ContextOverflow, ModelyardError, RequestError
from modelyard.gateway.exchange import Exchange, Headers
from modelyard.gateway.http.answers import Answer, error_headers, error_object, plain_error
from modelyard.gateway.translation.paths import is_libretranslate

SSE = b"text/event-stream"


class Api(Protocol):
    """The shapes of one API. `media` is the content type of its streams, `heartbeat` what keeps one alive
    before its first event, `progress` what its clients need in an event of progress; None: it has none."""

    media: ClassVar[bytes]
    heartbeat: ClassVar[bytes]
    progress: ClassVar[Mapping[str, object] | None]

    def error(self, error: ModelyardError) -> Answer:
        """Status, headers and body."""
        ...

    def error_event(self, error: ModelyardError) -> bytes:
        """The last thing in a stream that has begun."""
        ...

    def refusal(self, status: int, error: ModelyardError) -> bytes:
        """The body for an engine's own refusal, which goes out with the engine's status."""
        ...


class OpenAI:
    media: ClassVar[bytes] = SSE
    heartbeat: ClassVar[bytes] = b": waiting for the model\n\n"
    # Its clients read every event as a chunk, whatever its name.
    progress: ClassVar[Mapping[str, object] | None] = {"object": "modelyard.progress", "choices": []}

    def error(self, error: ModelyardError) -> Answer:
        return plain_error(error)

    def error_event(self, error: ModelyardError) -> bytes:
        return b"data: " + orjson.dumps({"error": error_object(error)}) + b"\n\n"

    def refusal(self, status: int, error: ModelyardError) -> bytes:
        return orjson.dumps({"error": error_object(error)})


_TYPES = {  # Anthropic's, by status
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


class Anthropic:
    media: ClassVar[bytes] = SSE
    heartbeat: ClassVar[bytes] = b'event: ping\ndata: {"type":"ping"}\n\n'
    progress: ClassVar[Mapping[str, object] | None] = {}

    def error(self, error: ModelyardError) -> Answer:
        return error.status, error_headers(error), self._body(self._type(error), _message(error))

    def error_event(self, error: ModelyardError) -> bytes:
        return b"event: error\ndata: " + self._body(self._type(error), _message(error)) + b"\n\n"

    def refusal(self, status: int, error: ModelyardError) -> bytes:
        other = "invalid_request_error" if status < 500 else "api_error"
        return self._body(_TYPES.get(status, other), error.message)

    def _body(self, kind: str, message: str) -> bytes:
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})

    def _type(self, error: ModelyardError) -> str:
        if error.status == 503 and error.retryable:
            return "overloaded_error"
        other = "invalid_request_error" if isinstance(error, RequestError) else "api_error"
        return _TYPES.get(error.status, other)


class Ollama:
    media: ClassVar[bytes] = b"application/x-ndjson"
    heartbeat: ClassVar[bytes] = b" "  # blanks before a JSON line; an empty line would be read as one
    progress: ClassVar[Mapping[str, object] | None] = None

    def error(self, error: ModelyardError) -> Answer:
        return error.status, error_headers(error), orjson.dumps({"error": error.message})

    def error_event(self, error: ModelyardError) -> bytes:
        return orjson.dumps({"error": error.message}) + b"\n"

    def refusal(self, status: int, error: ModelyardError) -> bytes:
        return orjson.dumps({"error": error.message})


class LibreTranslate:
    """No stream is there. Its clients read `error` as a text; what says more stands beside it."""

    media: ClassVar[bytes] = b"application/json"
    heartbeat: ClassVar[bytes] = b""
    progress: ClassVar[Mapping[str, object] | None] = None

    def error(self, error: ModelyardError) -> Answer:
        return error.status, error_headers(error), self.refusal(error.status, error)

    def error_event(self, error: ModelyardError) -> bytes:
        return self.refusal(error.status, error)

    def refusal(self, status: int, error: ModelyardError) -> bytes:
        said = error_object(error)
        return orjson.dumps({"error": said.pop("message"), **said})


OPENAI = OpenAI()
ANTHROPIC = Anthropic()
OLLAMA = Ollama()
LIBRETRANSLATE = LibreTranslate()


def api_of(path: str, headers: Headers | None = None) -> Api:
    """The API that a path belongs to; OpenAI's for all that belongs to none. The list of models is at one
    path in two of them: Anthropic's clients say their version."""
    if path.startswith("/api/"):
        return OLLAMA
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    if is_libretranslate(path):
        return LIBRETRANSLATE
    if headers is not None and path.startswith("/v1/models") and headers.get(b"anthropic-version"):
        return ANTHROPIC
    return OPENAI


def render(exchange: Exchange, error: ModelyardError) -> Answer:
    """The server's `render_error`."""
    return api_of(exchange.path, exchange.headers).error(error)


def _message(error: ModelyardError) -> str:
    """Anthropic's clients know a full context by its first words."""
    return f"prompt is too long: {error.message}" if isinstance(error, ContextOverflow) else error.message


__all__ = ["ANTHROPIC", "LIBRETRANSLATE", "OLLAMA", "OPENAI", "SSE", "Api", "api_of", "render"]
