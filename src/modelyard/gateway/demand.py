"""What one request wants of one version, whatever API it came by.

Made by the inference lanes, each in its own way; served by `serve.Service`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelyard.core.types import Priority
from modelyard.gateway.api import OPENAI, Api
from modelyard.gateway.relay import Reshape
from modelyard.runtime.entries import Entry


@dataclass(slots=True)
class Demand:
    """What one request wants of one version. `kind` names it in metrics; `path` is the engine's. `reshape`
    turns the engine's whole 2xx body into the API's; `reshape_events` makes what does so with whole events,
    one for each attempt. None: leave them. `progress`: the client asks for events while it waits. `key` names
    the key that it came with; empty without one. `waited`: seconds of its `max_wait` that are used up:
    by what was tried before for the same client, and in the end by this."""

    entry: Entry
    kind: str
    path: bytes
    body: bytes
    stream: bool
    priority: Priority | None = None
    load: bool = True
    exclude: frozenset[str] = frozenset()
    reshape: Reshape | None = None
    reshape_events: Callable[[], Reshape] | None = None
    api: Api = OPENAI
    progress: bool = False
    key: str = ""
    waited: float = 0.0

    def move_to(self, other: Demand) -> None:
        """Have it be what `other` is: the same request to another version."""
        self.entry, self.path, self.body = other.entry, other.path, other.body
        self.reshape, self.reshape_events = other.reshape, other.reshape_events
