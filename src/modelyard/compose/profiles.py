"""Engine profiles: those of the file as they are, those of the registry made, changed and removed.

Built by `yard`. A change goes the way of all live changes: what is run with the profile is another version.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from modelyard.compose.additions import check_programs, made_of
from modelyard.compose.entries import found
from modelyard.compose.live import Live
from modelyard.compose.lookup import refused
from modelyard.compose.registered import Held, Holding
from modelyard.config import Config, ConfigErrors
from modelyard.engines import registry as engines
from modelyard.engines.base import Engine, Profile
from modelyard.errors import EngineInUse, EngineNotFound, NameTaken, OwnedByFile
from modelyard.gateway.engines_routes import KnownEngine
from modelyard.registry import Json, ProfileRecord, Registry


class RegistryProfiles:
    """See `gateway.engines_routes.Engines`."""

    def __init__(self, registry: Registry, held: Held, live: Live) -> None:
        self._registry = registry
        self._held = held
        self._live = live

    async def all(self) -> Sequence[KnownEngine]:
        """See Engines.all."""
        return await self._known({*self._live.config.profiles, *self._held.left_out.profiles})

    async def get(self, name: str) -> KnownEngine:
        """See Engines.get."""
        if name not in self._live.config.profiles and name not in self._held.left_out.profiles:
            raise EngineNotFound(f"There is no engine profile {name!r}.", param="name")
        return (await self._known([name]))[0]

    def record(self, name: str) -> ProfileRecord | None:
        """See Engines.record."""
        return self._live.additions.profiles.get(name) or self._held.left_out.profiles.get(name)

    async def put(self, name: str, fields: Json, *, who: str, match: int | None) -> KnownEngine:
        """See Engines.put."""
        async with self._held.changing:
            self._check_own(name)
            known, now = self.record(name), time.time()
            revision, created = (known.revision, known.created) if known is not None else (0, now)
            seen = revision if match is None else match
            record = ProfileRecord(name, seen + 1, fields, created, now, who)
            additions = self._live.additions
            try:
                check_programs(self._live.config, made_of(name, fields))
                await self._live.register(
                    None,
                    commit=lambda: self._registry.profiles.put(record),
                    additions=replace(additions, profiles={**additions.profiles, name: record}),
                )
            except ConfigErrors as error:
                raise refused(error, name, "engines") from error
            self._held.mended(f"engines.{name}")
            return await self.get(name)

    async def remove(self, name: str, *, who: str, match: int | None) -> None:
        """See Engines.remove."""
        async with self._held.changing:
            record = self.record(name)
            if record is None:
                self._check_own(name)
                raise EngineNotFound(f"There is no engine profile {name!r}.", param="name")
            for model, holding in self._held.holdings.items():
                if number := next(_users(holding, name), None):
                    raise EngineInUse.by(name, model, number)
            path, seen = f"engines.{name}", record if match is None else replace(record, revision=match)
            await self._live.register(
                None,
                commit=lambda: self._registry.profiles.remove(seen, who=who, at=time.time()),
                additions=self._live.additions.without({path}),
            )
            self._held.mended(path)

    def _check_own(self, name: str) -> None:
        """Raises OwnedByFile, and NameTaken for an engine's own type."""
        base = self._live.base
        if name in base.profiles:
            raise OwnedByFile.at(name, str(base.positions.get(f"engines.{name}", "")))
        if name in engines.load():
            raise NameTaken(f"{name} is an engine itself, which models name without a profile", param="name")

    async def _known(self, names: Collection[str]) -> Sequence[KnownEngine]:
        """What is known of these, by name."""
        config = self._live.config
        models = Counter(model.spec.engine for model in config.models)
        listed = [self._one(config, name, models[name]) for name in sorted(names)]
        adapters = {one.profile.type: engines.load().get(one.profile.type) for one in listed}
        where = await asyncio.to_thread(
            lambda: found(
                *filter(None, adapters.values()),
                programs={one.profile.program for one in listed if one.profile.program},
            )
        )
        return [_here(one, adapters[one.profile.type], where) for one in listed]

    def _one(self, config: Config, name: str, models: int) -> KnownEngine:
        """Without its program."""
        place, record = str(config.positions.get(f"engines.{name}", "")), self.record(name)
        return KnownEngine(
            config.profiles.get(name) or self._left_out(name),
            owner="file" if place else "registry" if record is not None else "engine",
            place=place,
            program=None,
            models=models,
            record=record,
            error=self._held.unusable.get(f"engines.{name}", ""),
        )

    def _left_out(self, name: str) -> Profile:
        """One that is left out, as far as it can be made here."""
        left_out = self._held.left_out
        try:
            return left_out.made(name)
        except ConfigErrors:
            return Profile(name, str(left_out.profiles[name].profile.get("type", "")))


def _users(holding: Holding, name: str) -> Iterator[int]:
    """The versions that name this engine profile."""
    return (number for number, one in holding.versions.items() if one.spec.get("engine") == name)


def _here(known: KnownEngine, engine: Engine | None, where: Mapping[str, str]) -> KnownEngine:
    """With what this machine has of it."""
    if engine is None:
        return known
    may_run = [known.profile.program] if known.profile.program else engine.programs
    return replace(
        known,
        program=next(filter(None, map(where.get, may_run)), None),
        verified="golden" if known.profile.defaults.get("preset") in engine.presets else engine.verified,
        missing=engine.missing(replace(known.profile, found=where)),
    )
