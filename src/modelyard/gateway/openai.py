"""OpenAI's shapes: an error as an answer, and as an event of a stream that has begun. Called by `api`."""

from __future__ import annotations

from math import ceil

import orjson

from modelyard.errors import MethodNotAllowed, ModelyardError, Unauthorized

JSON = (b"content-type", b"application/json")
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


def error_object(error: ModelyardError) -> dict[str, object]:
    """The value of `error` in a body or an event."""
    return {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}


def error_headers(error: ModelyardError) -> list[tuple[bytes, bytes]]:
    """The headers of an error, the same for every API. `x-should-retry` is said where the clients of OpenAI
    and Anthropic would decide otherwise: they retry every 5xx, 408, 409 and 429."""
    headers = [JSON]
    if error.retry_after is not None and error.retryable:
        headers.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after))))
    if not error.retryable and (error.status >= 500 or error.status in (408, 409, 429)):
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, MethodNotAllowed) and error.allowed:
        headers.append((b"allow", error.allowed.encode()))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def error_body(error: ModelyardError) -> Answer:
    """Status, headers and body."""
    return error.status, error_headers(error), orjson.dumps({"error": error_object(error)})


def error_event(error: ModelyardError) -> bytes:
    """An SSE event that ends a stream; no `[DONE]` comes after it."""
    return b"data: " + orjson.dumps({"error": error_object(error)}) + b"\n\n"
