"""One generation as the API sees it, whatever generates. Standard library only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from modelyard.servers.transformers.asks import Sampling


class Failed(Exception):
    """The generation broke off; `fatal` when no other will ever work either."""

    def __init__(self, message: str, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


@dataclass(eq=False)
class Job:
    """At most `limit` tokens after `prompt`, until one of `ends`.

    `said` receives tokens as they come, then once None, or Failed, on the event loop alone."""

    prompt: Sequence[int]
    limit: int
    ends: frozenset[int]
    sampling: Sampling
    said: asyncio.Queue[Sequence[int] | Exception | None] = field(default_factory=asyncio.Queue)


class Generator(Protocol):
    """What generates. Its methods are called on the event loop and never wait, but `open` and `close`, which
    are called in a thread, and only while there is no job."""

    def start(self, job: Job) -> None: ...

    def cancel(self, job: Job) -> None:
        """Break a job off, unless it has ended by itself; its end is said as ever."""
        ...

    def counts(self) -> Mapping[str, float]:
        """What it has to tell about itself: `kv_use` (0 to 1), `drafted` and `accepted` tokens."""
        ...

    def open(self) -> None: ...

    def close(self) -> None:
        """Give back the memory that serves requests."""
        ...


class Embedder(Protocol):
    async def embed(self, inputs: Sequence[Sequence[int]]) -> Sequence[Sequence[float]]:
        """A vector of each list of tokens. When this is cancelled, it ends when none of them is computed any
        more. Raises Failed."""
        ...

    def counts(self) -> Mapping[str, float]:
        """What it has to tell about itself: `batch`, the inputs that are computed together now."""
        ...


class Sleeper(Protocol):
    """Puts the weights away and brings them back; each is called in a thread, and says how many bytes it
    moved and in how many seconds. `level` is where they lie meanwhile (`file`, `ram`), empty where they
    cannot leave."""

    level: str

    def sleep(self) -> tuple[int, float]: ...

    def wake(self) -> tuple[int, float]: ...


class Words(Protocol):
    """The model's tokenizer. Each raises ValueError for what it cannot take."""

    ends: frozenset[int]
    defaults: Sampling
    chats: bool
    vocabulary: int  # tokens are smaller

    def encode(self, text: str, special: bool = True) -> list[int]: ...

    def chat(self, messages: Sequence[Mapping[str, object]], more: Mapping[str, object]) -> list[int]: ...

    def decode(self, tokens: Sequence[int], special: bool = False) -> str: ...


@dataclass
class Model:
    """A model as it was loaded: one of `generator` and `embedder` is there."""

    words: Words
    sleeper: Sleeper
    generator: Generator | None = None
    embedder: Embedder | None = None
