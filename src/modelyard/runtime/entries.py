"""What the runtime needs to run a version, and the seam through which it gets files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from modelyard.core.events import Added
from modelyard.core.languages import NO_PAIRS, Pairs
from modelyard.core.types import FREE, Need, Policy, Price, Spec
from modelyard.engines.base import TRANSLATE, Engine, Files, Profile


@dataclass(slots=True)
class Entry:
    """A version as the driver runs it. `files` is None until they lie in the cache; `problem` says why those
    that lie there cannot be used; `estimate` is its need as far as the files on this machine told when
    it was added, None where they were elsewhere; `paths` are the API paths that its engine answers.
    `successor` is the version that its model has now, once this one was replaced. `told` is what it
    translates by what its files told when it was added, or its server when it was last loaded."""

    spec: Spec
    policy: Policy
    engine: Engine
    profile: Profile
    files: Files | None = None
    problem: str = ""
    estimate: Need | None = None
    price: Price = FREE
    successor: Entry | None = field(default=None, repr=False)
    told: Pairs = NO_PAIRS
    paths: frozenset[str] = field(init=False)
    _read: tuple[Files | None, Pairs] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.paths = self.engine.paths(self.spec)

    @property
    def pairs(self) -> Pairs:
        """What it translates, as far as anybody knows: its spec, else its files, else its server."""
        if TRANSLATE not in self.paths:
            return NO_PAIRS
        if self._read is None or self._read[0] is not self.files:
            self._read = self.files, self.engine.pairs(self.spec, self.files or {})
        return self.spec.pairs or self._read[1] or self.told

    @property
    def newest(self) -> Entry:
        """The version that its model has now, as far as it was not removed."""
        entry = self
        while entry.successor is not None:
            entry = entry.successor
        return entry

    def added(self) -> Added:
        """What the scheduler is told when it comes: its files are used if they are in the cache."""
        return Added(self.spec, self.policy, self.estimate if self.files is not None else None)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the fetch of a version has come, in bytes; `total` is None while it is unknown."""

    version: str
    done: int
    total: int | None


class FileProvider(Protocol):
    """Gets the files of a version into the cache."""

    async def cached(self, entry: Entry) -> Files | None:
        """The files if they all lie in the cache; no network. Raises StoreError for one that cannot be
        used."""
        ...

    async def lying(self, entry: Entry) -> Files | None:
        """The files if they all lie on this machine, also those that were never read whole: these are without
        a digest, good for an estimate alone. Raises StoreError for one that cannot be used."""
        ...

    async def ask(self, entry: Entry, deadline: float) -> Files:
        """Ask where its files are to come from whether they can be had, and what they say of themselves,
        without fetching them: their size is 0 and their header empty where that is not known. Raises
        StoreError, after at most `deadline` seconds for each."""
        ...

    async def recheck(self, entry: Entry, user: str) -> bool:
        """Whether the files that it knows are still what they were, right before an engine starts: a stat
        each where nothing changed. They are not removed until `user` lets go. Raises StoreError for one with
        other bytes than it had."""
        ...

    def let_go(self, user: str) -> None:
        """Its engine is gone, or did not start."""
        ...

    async def fetch(self, entry: Entry, progress: Callable[[Progress], None]) -> Files:
        """Fetch what is missing. Raises StoreError and leaves no half file."""
        ...
