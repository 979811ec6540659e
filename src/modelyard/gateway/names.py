"""Names: which version a model name means. Written by compose when models come and go; read per request."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from modelyard.errors import ModelNotFound
from modelyard.runtime.entries import Entry

LONGEST = 300  # characters of a name that are compared and repeated; a client may send megabytes


class Names:
    """Model names and aliases, and `model@digest` for one version (at least 6 digits of the digest)."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._aliases: dict[str, str] = {}

    def add(self, entry: Entry, aliases: tuple[str, ...] = ()) -> None:
        self._entries[entry.spec.model] = entry
        for alias in aliases:
            self._aliases[alias] = entry.spec.model

    def replace(self, models: Iterable[tuple[Entry, tuple[str, ...]]]) -> None:
        """Know these with their aliases, and no others."""
        self._entries, self._aliases = {}, {}
        for entry, aliases in models:
            self.add(entry, aliases)

    def model(self, name: str) -> Entry:
        """The model of this very name. Raises ModelNotFound, with near names."""
        entry = self._entries.get(name)
        if entry is None:
            raise self._unknown(name)
        return entry

    def all(self) -> list[Entry]:
        return list(self._entries.values())

    def aliases_of(self, entry: Entry) -> tuple[str, ...]:
        return tuple(alias for alias, name in self._aliases.items() if name == entry.spec.model)

    def resolve(self, name: str) -> Entry:
        """The entry that `name` means. Raises ModelNotFound, with near names."""
        entry = self._entries.get(name)
        if entry is not None:
            return entry
        model = self._aliases.get(name)
        if model is not None:
            return self._entries[model]
        return self._resolve_version(name)

    def _resolve_version(self, name: str) -> Entry:
        model, at, digest = name.rpartition("@")
        if at and len(digest) >= 6:
            entry = self._entries.get(self._aliases.get(model, model))
            if entry is not None and entry.spec.digest.startswith(digest):
                return entry
        raise self._unknown(name)

    def _unknown(self, name: str) -> ModelNotFound:
        known = [*self._entries, *self._aliases]
        if len(name) > LONGEST:
            name = f"{name[:LONGEST]}…"
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        if near:
            hint = f"Did you mean {' or '.join(repr(other) for other in near)}?"
        elif known:
            hint = f"There are {', '.join(sorted(known)[:10])}."
        else:
            hint = "No model is configured."
        return ModelNotFound(f"There is no model {name!r}. {hint}", param="model")
