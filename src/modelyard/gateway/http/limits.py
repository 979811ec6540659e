"""What one client, and all clients together, may take from the server."""

from __future__ import annotations

from dataclasses import dataclass

from modelyard import config

KIB = 1024


@dataclass(frozen=True, slots=True)
class Limits(config.Limits):
    """The configured bounds, with those that nobody needs to set: bytes and seconds.

    Past `header` comes 431, `header_timeout` 408, `body` 413, `body_timeout` 408, `connections` 503; past
    `buffered`, over all connections, bodies get 503 and answers are asked to pause; `write_timeout` cuts.
    """

    request_line: int = 16 * KIB  # 414
    header_count: int = 200  # 431
    keep_alive: float = 75.0  # an idle connection is closed without a word
    body_rate: int = 1 * KIB  # 408 under so many bytes a second, judged once body_timeout has passed
    body_total: float = 600.0  # 408 however steadily it comes
    pipeline: int = 16  # requests that wait behind the one being answered; then reading pauses
    linger: float = 2.0  # how long a refused body is read away, so that the refusal arrives

    @property
    def sweep(self) -> float:
        """Seconds between two looks at the deadlines: fine enough that none is late by more than a tenth
        of the shortest, and never more often than a hundred times a second."""
        shortest = min(
            self.header_timeout, self.keep_alive, self.body_timeout, self.write_timeout, self.linger, 5.0
        )
        return max(0.01, shortest / 10)
