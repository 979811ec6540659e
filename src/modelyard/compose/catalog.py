"""Models as data: each change is checked like a change of the file, kept in the registry, then served.

Built by `yard`. How they are read is in `lookup`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from modelyard.compose.live import Live
from modelyard.compose.lookup import Lookup, refused
from modelyard.compose.promotion import Promotion
from modelyard.compose.registered import OF_POLICY, Held, Holding, Parts
from modelyard.config import ConfigErrors, Model
from modelyard.config.problems import near_miss
from modelyard.config.schema import ModelSection
from modelyard.errors import (
    AliasInUse,
    CannotLoad,
    NameTaken,
    RevisionMismatch,
    SpecRefused,
    VersionNotFound,
)
from modelyard.gateway.capabilities import capabilities_of
from modelyard.gateway.catalog import Known, Step
from modelyard.gateway.names import Names
from modelyard.gateway.paths import location
from modelyard.registry import Json, ModelRecord, NewVersion, Registry, VersionRecord, VersionState
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry

ASKING = 15.0  # seconds within which each source of a new version has to answer


class RegistryCatalog(Lookup):
    """See `gateway.catalog.Catalog`."""

    def __init__(self, registry: Registry, held: Held, live: Live, driver: Driver, names: Names) -> None:
        super().__init__(registry, held, live, names)
        self._driver = driver
        live.registered = held.models
        live.unknown_keys = held.unknown_keys

    async def register(self, name: str, fields: Json, *, description: str, who: str) -> Known:
        """See Catalog.register."""
        parts = Parts.of(fields)
        self._refuse_taken(name, parts)
        new = await self._new(name, parts.spec, {**parts.policy, "aliases": list(parts.aliases)})

        async def commit() -> ModelRecord:
            return await self._registry.register(
                name, new, who=who, policy=parts.policy, aliases=parts.aliases, description=description
            )

        async with self._held.changing:
            self._refuse_taken(name, parts)
            await self._change(name, _first(name, parts, new), commit)
            return self.get(name)

    async def add_version(
        self, name: str, fields: Json, *, who: str, match: int | None
    ) -> tuple[VersionRecord, bool]:
        """See Catalog.add_version."""
        holding, parts = self._holding(name), Parts.of(fields)
        if parts.policy or parts.aliases:
            which = next(iter((*parts.policy, "aliases")))
            where = f"PATCH {location(holding.record.name)}"
            raise SpecRefused(f"{which}: belongs to the model, not to a version: {where}", param=which)
        own = holding.record.name
        new = await self._new(own, parts.spec, holding.record.policy)
        async with self._held.changing:
            added = await self._registry.add_version(own, new, who=who, match=match)
            self._held.keep(added.model, added.version)
            return added.version, added.created

    async def promote(
        self, name: str, number: int, *, swap: bool, who: str, match: int | None, step: Step
    ) -> Known:
        """See Catalog.promote."""
        own = self._holding(name).record.name
        async with self._held.promoting(own):
            holding = self._holding(own)
            chosen = holding.version(number)
            if number == holding.record.current.number and own not in self._held.broken:
                return self.get(own)
            model = self._made(own, holding.fields(number))

            async def lead() -> None:
                async with self._held.changing:
                    now = self._holding(own)
                    if now.version(chosen.number).digest != chosen.digest:
                        message = f"{own} was removed and registered anew meanwhile"
                        raise VersionNotFound(message, param="version")
                    after = replace(now, record=replace(now.record, current=chosen))
                    await self._change(
                        own,
                        after,
                        lambda: self._registry.set_current(own, chosen.number, who=who, match=match),
                    )

            if own in self._held.broken:  # nobody is served by the one before
                await lead()
                return self.get(own)
            promotion = Promotion(self._live, self._driver, self._names, step)
            await promotion.run(model, lead, swap=swap)
            return self.get(own)

    async def set_policy(
        self, name: str, changes: Json, *, description: str | None, who: str, match: int | None
    ) -> Known:
        """See Catalog.set_policy."""
        parts = Parts.of(changes)
        if parts.spec:
            which, where = next(iter(parts.spec)), location(self._holding(name).record.name, "/versions")
            if which not in ModelSection.model_fields:
                hint = near_miss(which, {*OF_POLICY, "aliases", "description"})
                raise SpecRefused(f"{which}: is no field of a model{hint}", param=which)
            message = f"{which}: is part of a version, which never changes; add one: POST {where}"
            raise SpecRefused(message, param=which)
        async with self._held.changing:
            own = self._holding(name).record.name
            while True:
                seen = self._held.holdings[own].record.revision if match is None else match
                try:
                    await self._policy(own, changes, parts, description, who, seen)
                    return self.get(own)
                except RevisionMismatch:
                    if match is not None:
                        raise
                    self._held.keep(await self._registry.get(own))  # another server was before us

    async def _policy(
        self, own: str, changes: Json, parts: Parts, description: str | None, who: str, match: int
    ) -> None:
        """Change the policy of the model as it is held."""
        holding = self._held.holdings[own]
        record = holding.record
        merged = {**record.policy, **parts.policy}
        policy = {field: value for field, value in merged.items() if value is not None}
        aliases = parts.aliases if "aliases" in changes else record.aliases
        self._refuse_taken(own, replace(parts, aliases=aliases))
        after = replace(record, policy=policy, aliases=aliases)
        self._made(own, replace(holding, record=after).fields(record.current.number))

        async def commit() -> ModelRecord:
            return await self._registry.update(
                own,
                who=who,
                policy=policy if policy != record.policy else None,
                aliases=aliases if aliases != record.aliases else None,
                description=description,
                match=match,
            )

        await self._change(own, replace(holding, record=after), commit)

    async def tag(self, name: str, tag: str, number: int | None, *, who: str, match: int | None) -> Known:
        """See Catalog.tag."""
        async with self._held.changing:
            own = self._holding(name).record.name
            if number is not None and self._names.whole(f"{own}:{tag}") is not None:
                message = f"{own}:{tag} is the name of a model, which comes first; choose another tag"
                raise NameTaken(message, param="tag")
            if number is None:
                record = await self._registry.untag(own, tag, who=who, match=match)
            else:
                record = await self._registry.tag(own, tag, number, who=who, match=match)
            self._held.keep(record)
            return self.get(own)

    async def remove(self, name: str, *, force: bool, who: str, match: int | None) -> Sequence[str]:
        """See Catalog.remove."""
        async with self._held.changing:
            holding = self._holding(name)
            own, aliases = holding.record.name, holding.record.aliases
            if aliases and not force:
                message = f"{own} is asked for as {', '.join(aliases)} too; take that away first, or force it"
                raise AliasInUse(message, param="force")
            was_served = own not in self._held.broken  # else the file may have another one of this name
            without = self._held.holdings.without(own)

            async def commit() -> None:
                await self._registry.delete(own, who=who, match=match)
                self._held.forget(own)

            await self._live.register(partial(self._held.models, holdings=without), commit)
            return [
                key
                for key, version in self._driver.scheduler.state.versions.items()
                if was_served and version.spec.model == own and version.instances
            ]

    async def drained(self, versions: Sequence[str]) -> None:
        """See Catalog.drained."""
        await self._driver.gone(versions)

    async def bring(self, version: str) -> None:
        """See Catalog.bring."""
        holding, number = self._numbered(version)
        try:
            await self._live.bring(self._held.making.model(self._live.config, holding, number))
        except ConfigErrors as error:
            raise CannotLoad(f"{version} cannot be served here: {error}", param="model") from error

    # -- a change -----------------------------------------------------------------------------------------

    async def _change(self, name: str, after: Holding, commit: Callable[[], Awaitable[ModelRecord]]) -> None:
        """Serve `after`, once `commit` has kept it; what that returns is what is held from then on."""
        planned = self._held.holdings.with_one(after)

        broken = self._held.broken.keys() - {name}

        async def kept() -> None:
            self._held.keep(await commit())
            self._held.broken.pop(name, None)

        try:
            await self._live.register(partial(self._held.models, holdings=planned, broken=broken), kept)
        except ConfigErrors as error:
            raise refused(error, name) from error

    def _made(self, name: str, fields: Json) -> Model:
        """Raises SpecRefused."""
        try:
            return self._held.making.of_fields(self._live.config, name, fields)
        except ConfigErrors as error:
            raise refused(error, name) from error

    async def _new(self, name: str, spec: Json, policy: Json) -> NewVersion:
        """A version that can be run here, and what it can do, as far as that is told without its files.
        Raises SpecRefused, and the StoreError of a source that has none, or what is of no use."""
        entry = await self._checked(name, {**spec, **policy})
        files = entry.files or await self._driver.files.ask(entry, ASKING)
        suited = entry.engine.suited(entry.spec, files)
        if suited and "parameters" not in spec:
            spec = {**spec, "parameters": suited}
            entry = await self._checked(name, {**spec, **policy})
        profiled = spec.get("engine") in self._live.additions.profiles
        return NewVersion(spec, entry.spec.digest, capabilities_of(entry, files), profiled)

    async def _checked(self, name: str, fields: Json) -> Entry:
        """The version with these fields as it would be run here. Raises SpecRefused."""
        try:
            entry = await self._live.check(self._made(name, fields))
        except ConfigErrors as error:
            raise refused(error, name) from error
        if entry.problem:
            raise SpecRefused(f"source: {entry.problem}", param="source")
        return entry

    def _refuse_taken(self, own: str, parts: Parts) -> None:
        """Raises NameTaken for a name or alias that means something else."""
        for name in (own, *parts.aliases):
            known = self._names.whole(name)
            if known is None:
                taken = f"a tag of {name.rpartition(':')[0]}" if self._names.tagged(name) else ""
            elif known.spec.model != own or (name == own and own not in self._held.holdings):
                taken = "a model" if name == known.spec.model else f"an alias of {known.spec.model}"
            else:
                taken = ""
            if taken:
                param = "name" if name == own else "aliases"
                raise NameTaken(f"{name} is {taken} already; choose another name", param=param)


def _first(name: str, parts: Parts, new: NewVersion) -> Holding:
    """A model that is about to be registered, as far as it decides what is served."""
    version = VersionRecord(
        name, 1, new.digest, new.spec, VersionState.REGISTERED, "", new.capabilities, 0.0, ""
    )
    record = ModelRecord(name, 1, "", "", version, None, parts.policy, parts.aliases, {}, 0.0, 0.0)
    return Holding(record, {1: version})
