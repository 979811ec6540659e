"""What one client, and all clients together, may take from the server."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the HTTP server: bytes and seconds. What happens past each is said beside it."""

    request_line: int = 16 * KIB  # 414
    header_bytes: int = 64 * KIB  # 431; the whole head, request line included
    header_count: int = 200  # 431
    header_timeout: float = 10.0  # 408, from the head's first byte (a new connection: from its opening)
    keep_alive: float = 75.0  # an idle connection is closed without a word
    body_bytes: int = 32 * MIB  # 413
    body_progress: float = 10.0  # 408 when no byte of a body came for so long
    body_rate: int = 1 * KIB  # 408 under so many bytes a second, judged once body_progress has passed
    body_total: float = 600.0  # 408 however steadily it comes
    buffered_bytes: int = 256 * MIB  # over all connections: bodies get 503, answers are asked to pause
    connections: int = 1024  # 503 and closed
    pipeline: int = 16  # requests that wait behind the one being answered; then reading pauses
    write_stall: float = 60.0  # a client that takes no byte for so long is cut
    linger: float = 2.0  # how long a refused body is read away, so that the refusal arrives

    @property
    def sweep(self) -> float:
        """Seconds between two looks at the deadlines: fine enough that none is late by more than a tenth
        of the shortest, and never more often than a hundred times a second."""
        shortest = min(
            self.header_timeout, self.keep_alive, self.body_progress, self.write_stall, self.linger, 5.0
        )
        return max(0.01, shortest / 10)
