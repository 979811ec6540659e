"""Models as data, as the control surface sees them: registered, given versions, promoted, removed. Carried
out by compose. What is read here comes from memory; only changes need the database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelyard.config.difference import Value
from modelyard.registry.records import (
    Artifact,
    AuditRecord,
    Json,
    ModelRecord,
    PolicyRecord,
    VersionRecord,
)
from modelyard.runtime.entries import Entry


@dataclass(frozen=True, slots=True)
class Known:
    """A model, or one of its versions, as it is run or would be, and what the registry has of it; None for
    one that a file owns, which `place` then names (file and line, as far as that is known). `other` is the
    version that it is where that is not the current one."""

    entry: Entry
    aliases: tuple[str, ...]
    record: ModelRecord | None = None
    place: str = ""
    other: VersionRecord | None = None

    @property
    def version(self) -> VersionRecord | None:
        """What the registry has of this version."""
        return self.other or (self.record.current if self.record is not None else None)

    @property
    def name(self) -> str:
        return self.entry.spec.model


@dataclass(frozen=True, slots=True)
class Filter:
    """Which models a list shows: all that is given must hold. `name` is a part of the name, in any case;
    `capability` and `pair` (source and target language) are those of the current version. `unusable`: also
    registered models that cannot be served here."""

    name: str = ""
    capability: str = ""
    pair: tuple[str, str] | None = None
    unusable: bool = False


Step = Callable[[str], None]
"""Told what long work is at, in a few words: `loading 3`, `switching`, `draining 2`."""


class Catalog(Protocol):
    """All changes take `who` makes them, for the audit log, and `match`: the revision that the caller has
    seen, None to do without. They raise NotFound kinds for names that mean nothing, OwnedByFile for a model
    of a file, RevisionMismatch, RegistryUnavailable, ConfigRefused for fields that are wrong (its `param` is
    their path), ShuttingDown; then nothing has changed."""

    @property
    def problem(self) -> str:
        """Why changes are refused at the moment; empty when they are not."""
        ...

    @property
    def unkept(self) -> str:
        """Why what was used and learned is not kept at the moment; empty when it is."""
        ...

    def get(self, name: str) -> Known:
        """The model that a name (an alias, a version's or a tag's name) means, also a registered one that
        cannot be served here: its `entry.problem` says why. Raises ModelNotFound."""
        ...

    def unserved(self, name: str) -> Known | None:
        """The registered model of this very name if it cannot be served here, also where the file has another
        one of that name, which `get` tells."""
        ...

    def page(self, where: Filter, after: str | None, limit: int) -> tuple[Sequence[Known], str | None]:
        """Models by name, behind `after`; and what to give as `after` for the next page, None at the end."""
        ...

    def versions(self, name: str) -> Sequence[VersionRecord]:
        """Those of a registered model, oldest first. Raises ModelNotFound, OwnedByFile."""
        ...

    def compare(self, name: str, one: int, other: int) -> Sequence[Value]:
        """What differs between two versions; secrets are hidden. Raises VersionNotFound, and SpecRefused for
        one that cannot be run here."""
        ...

    async def artifacts(self, name: str, number: int) -> Sequence[Artifact] | None:
        """The files of a version, by path; None while the database is away. Raises VersionNotFound."""
        ...

    async def register(self, name: str, fields: Json, *, description: str, who: str) -> Known:
        """A new model with its first version: `fields` are those of an entry under `models:`. Raises
        NameTaken."""
        ...

    async def add_version(
        self, name: str, fields: Json, *, who: str, match: int | None
    ) -> tuple[VersionRecord, bool]:
        """Another version of it, not the current one yet: `fields` without those of policy. False: it has one
        of the same digest, which is returned."""
        ...

    async def promote(
        self, name: str, number: int, *, swap: bool, who: str, match: int | None, step: Step
    ) -> Known:
        """Make a version the current one. It is loaded and warmed up first, beside the one that serves; then
        names lead to it, and the other drains. With `swap` the other one may leave before. Raises
        VersionNotFound, NoRoomBeside when both do not fit and `swap` is not set, and why it could not be
        loaded; then the other one goes on."""
        ...

    async def set_policy(
        self, name: str, changes: Json, *, description: str | None, who: str, match: int | None
    ) -> Known:
        """Change what may change while a version stays: a field that is None goes back to its default. Takes
        `aliases` as well. Raises NameTaken."""
        ...

    async def policies(self, name: str, *, before: int | None, limit: int) -> Sequence[PolicyRecord]:
        """The policies that it had, the newest first, older than the one with the number `before`. Raises
        RegistryUnavailable."""
        ...

    async def audit(self, model: str | None, *, before: int | None, limit: int) -> Sequence[AuditRecord]:
        """Changes, the newest first, older than the one with the id `before`. Raises RegistryUnavailable."""
        ...

    async def tag(self, name: str, tag: str, number: int | None, *, who: str, match: int | None) -> Known:
        """Have the tag name this version; None: take the tag away. Raises NameTaken for one with which its
        name would be that of a model."""
        ...

    async def remove(self, name: str, *, force: bool, who: str, match: int | None) -> Sequence[str]:
        """Remove it: who waits is refused, what runs finishes. Returns the keys of its versions that still
        have instances, for `drained`. Raises AliasInUse when aliases lead to it, unless `force`."""
        ...

    async def drained(self, versions: Sequence[str]) -> None:
        """Return when no instance of these versions (their keys) is left."""
        ...

    async def bring(self, version: str) -> None:
        """See names.Bring."""
        ...
