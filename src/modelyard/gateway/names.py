"""Names: which version a model name means. Written by compose when models come and go; read per request.

The rule is in docs/design/registry.md: a name as a whole, then `model@version`, then `model:tag`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from difflib import get_close_matches
from heapq import nsmallest
from os.path import commonprefix
from typing import TypeVar

from modelyard.errors import ModelNotFound
from modelyard.runtime.entries import Entry

LONGEST = 300  # characters of a name that are compared and repeated; a client may send megabytes
COMPARED = 100  # names that are compared with one that is not known
SHORTEST = 6  # digits of a digest that name a version

Find = Callable[[str, str, bool], str | None]
"""The key of the version (`Spec.version`) that a model's number, digits of a digest, or (True) tag names.
Raises ModelNotFound for digits that several have."""


Bring = Callable[[str], Awaitable[None]]
"""Has a registered version (its key) served under its own name. Raises ModelNotFound, CannotLoad."""

T = TypeVar("T")


class NotServed(ModelNotFound):
    """The name means a version that is registered, and not served at the moment: `version` is its key."""

    def __init__(self, message: str, version: str) -> None:
        super().__init__(message, param="model")
        self.version = version


async def reach(make: Callable[[], T], bring: Bring) -> T:
    """What `make` makes of names; a registered version that it is about is served from now on if it was not.
    Raises what it raises, and what `bring` does."""
    try:
        return make()
    except NotServed as registered:
        await bring(registered.version)
        return make()


class Names:
    """Model names and aliases; `model@3` and `model@3f9a0c` for one version, `model:tag` for one that has it.

    Each model has one entry, that of its current version; others may be served beside it under their version
    alone. `find` knows the versions of registered models.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._aliases: dict[str, str] = {}
        self._aliases_of: dict[str, tuple[str, ...]] = {}
        self._others: dict[str, Entry] = {}
        self.find: Find = lambda model, reference, tag: None

    def add(self, entry: Entry, aliases: tuple[str, ...] = ()) -> None:
        self._entries[entry.spec.model] = entry
        self._aliases_of[entry.spec.model] = aliases
        for alias in aliases:
            self._aliases[alias] = entry.spec.model

    def replace(self, models: Iterable[tuple[Entry, tuple[str, ...]]]) -> None:
        """Know these with their aliases, and no others."""
        self._entries, self._aliases, self._aliases_of = {}, {}, {}
        for entry, aliases in models:
            self.add(entry, aliases)

    def add_other(self, entry: Entry) -> None:
        """Serve a version beside the one that its model has."""
        self._others[entry.spec.version] = entry

    def drop_other(self, version: str) -> Entry | None:
        """Serve it no more; returns it if it was."""
        return self._others.pop(version, None)

    def others(self) -> list[Entry]:
        """The versions that are served beside those that their models have."""
        return list(self._others.values())

    def version(self, version: str) -> Entry | None:
        """The entry of a version by its key, if it is served."""
        entry = self._entries.get(version.rpartition("@")[0])
        if entry is not None and entry.spec.version == version:
            return entry
        return self._others.get(version)

    def model(self, name: str) -> Entry:
        """The model of this very name. Raises ModelNotFound, with near names."""
        entry = self._entries.get(name)
        if entry is None:
            raise self._unknown(name)
        return entry

    def own(self, name: str) -> Entry | None:
        """The model of this very name, if it is served."""
        return self._entries.get(name)

    def whole(self, name: str) -> Entry | None:
        """The model of this name or alias, if it is served."""
        return self._entries.get(self._aliases.get(name, name))

    def tagged(self, name: str) -> str | None:
        """The key of the version that has the tag of this name, were the name no model's as a whole."""
        before, found, tag = name.rpartition(":")
        entry = self.whole(before) if found else None
        return None if entry is None else self.find(entry.spec.model, tag, True)

    def all(self) -> list[Entry]:
        return list(self._entries.values())

    def aliases_of(self, entry: Entry) -> tuple[str, ...]:
        return self._aliases_of.get(entry.spec.model, ())

    def resolve(self, name: str) -> Entry:
        """The entry that `name` means. Raises ModelNotFound, with near names; NotServed is one of those."""
        entry = self._entries.get(name)
        if entry is not None:
            return entry
        model = self._aliases.get(name)
        if model is not None:
            return self._entries[model]
        for mark in "@:":
            before, found, reference = name.rpartition(mark)
            entry = self.whole(before) if found else None
            if entry is not None and (version := self._version_of(entry, reference, tag=mark == ":")):
                return version
        raise self._unknown(name)

    async def reach(self, name: str, bring: Bring) -> Entry:
        """The entry that `name` means, served from now on if it was not. Raises ModelNotFound, CannotLoad."""
        return await reach(lambda: self.resolve(name), bring)

    def _version_of(self, entry: Entry, reference: str, *, tag: bool) -> Entry | None:
        """Raises NotServed."""
        key = self.find(entry.spec.model, reference, tag)
        if key is None:
            digits = not tag and len(reference) >= SHORTEST
            return entry if digits and entry.spec.digest.startswith(reference) else None
        version = self.version(key)
        if version is None:
            raise NotServed(f"{key} is registered, but it is not served at the moment; try again.", key)
        return version

    def _unknown(self, name: str) -> ModelNotFound:
        known = [*self._entries, *self._aliases]
        if len(name) > LONGEST:
            name = f"{name[:LONGEST]}…"
        # Comparing takes long: of many names only those that begin alike are looked at.
        likely = nsmallest(COMPARED, known, key=lambda one: -len(commonprefix((one, name))))  # noqa: RUF071
        near = get_close_matches(name, likely, n=3, cutoff=0.5)
        if near:
            hint = f"Did you mean {' or '.join(repr(other) for other in near)}?"
        elif known:
            hint = f"There are {', '.join(nsmallest(10, known))}."
        else:
            hint = "No model is configured."
        return ModelNotFound(f"There is no model {name!r}. {hint}", param="model")
