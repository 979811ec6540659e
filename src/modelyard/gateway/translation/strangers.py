"""Bodies of those of whom nobody knows yet who they are, because their key may come in the body.

Read by the translation lane, piece by piece: what they may fill is bounded, one by one and all together, far
below what a key opens.
"""

from __future__ import annotations

from modelyard.errors import TooManyConnections, Unauthorized
from modelyard.gateway.exchange import Exchange

FREE = 64 * 1024  # bytes of a body that is read whoever else sends one
TOGETHER = 8
"""So many of the largest bodies are read at a time; who sends a small one is not kept waiting by them."""


class Strangers:
    def __init__(self) -> None:
        self._held = 0  # bytes of bodies that are over FREE

    async def body(self, exchange: Exchange, most: int) -> bytes:
        """A body of at most FREE + `most` bytes. Raises Unauthorized for a longer one, TooManyConnections,
        and as `Exchange.read` does."""
        said = exchange.headers.get(b"content-length") or b""
        if said.isdigit() and int(said) > FREE + most:
            raise _too_long(FREE + most)
        parts: list[bytes] = []
        size = held = 0
        try:
            while piece := await exchange.read():
                parts.append(piece)
                size += len(piece)
                if size <= FREE:
                    continue
                if size > FREE + most:
                    raise _too_long(FREE + most)
                self._held += size - held
                held = size
                if self._held > TOGETHER * (FREE + most):
                    raise TooManyConnections(
                        "Too many large bodies without a key in a header are read now: try again, or send "
                        "the key as `Authorization: Bearer KEY`.",
                        retry_after=1,
                    )
            return b"".join(parts)
        finally:
            self._held -= held


def _too_long(most: int) -> Unauthorized:
    return Unauthorized(
        f"No API key in a header, and a body of more than the {most:,} bytes that are read to find one "
        "there: send it as `Authorization: Bearer KEY`."
    )
