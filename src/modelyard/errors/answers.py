"""The error that an answer over HTTP stands for. Used by the client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelyard.errors.base import BY_CODE, ModelyardError, by_code
from modelyard.errors.requests import InvalidRequest
from modelyard.errors.serving import EngineFailed


def error_of(answer: Mapping[str, Any], status: int) -> ModelyardError:
    """The error in a body or an event. One of the engine's own, with a code that is not ours, is told apart
    by its status: its code, where that is one; a stream's says nothing."""
    detail = answer["error"]
    if not isinstance(detail, dict):
        detail = {"message": str(detail)}
    code, message = detail.get("code"), str(detail.get("message", ""))
    if isinstance(code, str) and code in BY_CODE and code != "config_error":
        return by_code(code, message)
    if isinstance(code, int):
        status = code
    return InvalidRequest(message) if 400 <= status < 500 else EngineFailed(message)
