"""What was used, and what it cost: added up in memory by hour, key, model and version, until it is kept; and
which translations were asked for.

Fed by the gateway and by compose, emptied by compose, which keeps it in the registry. All of it happens on
one event loop: nothing here locks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import structlog

from modelyard.core.types import Price

log = structlog.get_logger(__name__)

HOUR = 3600
MOST_ROWS = 10_000
MOST_TOKENS = 2**40  # of one answer: what an engine says beyond that is no count, and no sum can hold it
PER = 1_000_000  # tokens that a price is of

Place = tuple[int, str, str, str]
"""The hour (since the epoch), the key's name (empty: without one), the model, the version's public name."""


Asked = tuple[str, str, str]
"""From which language to which; the model that was named for it, or nothing."""


@dataclass(slots=True)
class Sums:
    """`seconds` are those of slots, from grant to release; `cost` is at the prices of when it happened."""

    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    loads: int = 0
    cost: float = 0.0


class Usage:
    """At most `limit` rows; what comes beyond them is added up without key and model, hour by hour. As many
    pairs by hour; others are not counted. `clock` returns seconds since the epoch."""

    def __init__(self, *, limit: int = MOST_ROWS, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._rows: dict[Place, Sums] = {}
        self._pairs: dict[tuple[int, Asked], int] = {}
        self._is_full = False

    def __len__(self) -> int:
        return len(self._rows)

    def ended(
        self,
        key: str,
        model: str,
        version: str,
        price: Price,
        *,
        failed: bool,
        input_tokens: int,
        output_tokens: int,
        seconds: float,
    ) -> None:
        """A request ended. On the path of every request: about 1 µs."""
        place = (int(self._clock() / HOUR), key, model, version)
        sums = self._rows.get(place) or self._new(place)
        sums.requests += 1
        sums.seconds += seconds
        if failed:
            sums.failed += 1
        if input_tokens or output_tokens:
            if input_tokens + output_tokens > MOST_TOKENS:
                input_tokens, output_tokens = min(input_tokens, MOST_TOKENS), min(output_tokens, MOST_TOKENS)
            sums.input_tokens += input_tokens
            sums.output_tokens += output_tokens
            sums.cost += (input_tokens * price.input + output_tokens * price.output) / PER

    def loaded(self, model: str, version: str, price: Price) -> None:
        """An instance became ready. Whoever it was for, no key has it alone."""
        place = (int(self._clock() / HOUR), "", model, version)
        sums = self._rows.get(place) or self._new(place)
        sums.loads += 1
        sums.cost += price.load

    def take(self, most: int) -> dict[Place, Sums]:
        """The oldest rows, which are the caller's from now on."""
        taken = dict(islice(self._rows.items(), most))
        for place in taken:
            del self._rows[place]
        self._is_full = False
        return taken

    def translated(self, asked: Asked) -> None:
        """A translation was asked for."""
        place = (int(self._clock() / HOUR), asked)
        if place in self._pairs or len(self._pairs) < self._limit:
            self._pairs[place] = self._pairs.get(place, 0) + 1

    @property
    def asked(self) -> int:
        """Pairs by hour that nobody took."""
        return len(self._pairs)

    def take_pairs(self, most: int) -> dict[tuple[int, Asked], int]:
        """How often what was asked for in which hour; these are the caller's from now on."""
        taken = dict(islice(self._pairs.items(), most))
        for place in taken:
            del self._pairs[place]
        return taken

    def _new(self, place: Place) -> Sums:
        if len(self._rows) >= self._limit:
            if not self._is_full:
                self._is_full = True
                log.warning("usage.full", rows=len(self._rows), effect="added up without key and model")
            place = (place[0], "", "", "")
        return self._rows.setdefault(place, Sums())
