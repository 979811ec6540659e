"""How much work an answer was, so that the paces of replicas compare. Used by `serve`."""

from __future__ import annotations

from collections.abc import Mapping

from modelyard.gateway.relay import Result

READ_LIKE_ONE = 8  # tokens that take about as long to read as one to write
BYTES_OF_ONE = 4  # of a token, about, where nobody counts


def work_in(result: Result, usage: Mapping[str, int] | None, asked: bytes) -> float:
    """In tokens that are written: by what the engine counted, else by the events of its answer and the bytes
    that it was asked with. 0 for an error."""
    if result.status >= 300:
        return 0.0
    if usage is None:
        read, written = len(asked) // BYTES_OF_ONE, result.chunks
    else:
        read, written = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    return 1.0 + written + read / READ_LIKE_ONE
