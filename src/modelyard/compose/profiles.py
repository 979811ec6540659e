"""Engine profiles: those of the file as they are, those of the registry made, changed and removed.

Built by `yard`. A change goes the way of all live changes: what is run with the profile is another version.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from modelyard.compose.additions import check_programs, made_of
from modelyard.compose.live import Live
from modelyard.compose.registered import Held, Holding
from modelyard.config import ConfigErrors
from modelyard.engines import registry as engines
from modelyard.engines.base import Profile
from modelyard.errors import (
    EngineInUse,
    EngineNotFound,
    NameTaken,
    OwnedByFile,
    RevisionMismatch,
    SpecRefused,
)
from modelyard.gateway.engines_routes import KnownEngine
from modelyard.registry import Json, ProfileRecord, Registry


class RegistryProfiles:
    """See `gateway.engines_routes.Engines`."""

    def __init__(self, registry: Registry, held: Held, live: Live) -> None:
        self._registry = registry
        self._held = held
        self._live = live

    def all(self) -> Sequence[KnownEngine]:
        """See Engines.all."""
        return [self._known(profile) for _, profile in sorted(self._live.config.profiles.items())]

    def get(self, name: str) -> KnownEngine:
        """See Engines.get."""
        profile = self._live.config.profiles.get(name)
        if profile is None:
            raise EngineNotFound(f"There is no engine profile {name!r}.", param="name")
        return self._known(profile)

    async def put(self, name: str, fields: Json, *, who: str, match: int | None) -> KnownEngine:
        """See Engines.put."""
        async with self._held.changing:
            known, now = self._own(name, match), time.time()
            revision, created = (known.revision + 1, known.created) if known is not None else (1, now)
            record = ProfileRecord(name, revision, fields, created, now, who)
            additions = self._live.additions
            try:
                check_programs(self._live.config, made_of(name, fields))
                await self._live.register(
                    None,
                    commit=lambda: self._registry.profiles.put(record),
                    additions=replace(additions, profiles={**additions.profiles, name: record}),
                )
            except ConfigErrors as error:
                prefix = f"engines.{name}."
                said = "; ".join(
                    f"{problem.path.removeprefix(prefix)}: {problem.message}" for problem in error.problems
                )
                raise SpecRefused(said, param=error.path.removeprefix(prefix) or None) from error
            return self.get(name)

    async def remove(self, name: str, *, who: str, match: int | None) -> None:
        """See Engines.remove."""
        async with self._held.changing:
            record = self._own(name, match)
            if record is None:
                raise EngineNotFound(f"There is no engine profile {name!r}.", param="name")
            for model, holding in self._held.holdings.items():
                if number := next(_users(holding, name), None):
                    message = f"version {number} of {model} is run with {name}; remove that model first"
                    raise EngineInUse(message, param="name")
            await self._live.register(
                None,
                commit=lambda: self._registry.profiles.remove(record, who=who, at=time.time()),
                additions=self._live.additions.without({f"engines.{name}"}),
            )

    def _own(self, name: str, match: int | None) -> ProfileRecord | None:
        """The profile as the registry has it, None where it has none. Raises OwnedByFile, NameTaken for an
        engine's own type, RevisionMismatch."""
        if name in self._live.base.profiles:
            raise OwnedByFile(f"{name} belongs to the configuration's file: change it there", param="name")
        if name in engines.load():
            raise NameTaken(f"{name} is an engine itself, which models name without a profile", param="name")
        record = self._live.additions.profiles.get(name)
        revision = record.revision if record is not None else 0
        if match not in (None, revision):
            said = f"is at revision {revision}" if record is not None else "does not exist"
            raise RevisionMismatch(
                f"{name} {said}: it was changed meanwhile; read it again", param="If-Match"
            )
        return record

    def _known(self, profile: Profile) -> KnownEngine:
        config, name = self._live.config, profile.name
        record = self._live.additions.profiles.get(name)
        place = config.positions.get(f"engines.{name}", "")
        programs = [profile.program] if profile.program else engines.load()[profile.type].programs
        return KnownEngine(
            profile,
            owner="registry" if record is not None else "file" if place else "engine",
            place=str(place),
            program=next(filter(None, map(shutil.which, programs)), None),
            models=sum(model.spec.engine == name for model in config.models),
            record=record,
        )


def _users(holding: Holding, name: str) -> Iterator[int]:
    """The versions that name this engine profile."""
    return (number for number, one in holding.versions.items() if one.spec.get("engine") == name)
