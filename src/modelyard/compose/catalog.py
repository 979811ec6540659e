"""Models as data: each change is checked like a change of the file, kept in the registry, then served.

Built by `yard`. Reading needs no database: what is held of it lies in memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from modelyard.compose.capabilities import matches
from modelyard.compose.live import Live
from modelyard.compose.promotion import Promotion
from modelyard.compose.registered import Held, Holding, Parts
from modelyard.config import ConfigErrors, Model
from modelyard.config.difference import Value, compare
from modelyard.config.together import profile_of, together
from modelyard.config.values import nearest
from modelyard.engines import registry as engines
from modelyard.errors import (
    AliasInUse,
    ModelNotFound,
    ModelyardError,
    NameTaken,
    OwnedByFile,
    RegistryUnavailable,
    RevisionMismatch,
    SpecRefused,
    VersionNotFound,
)
from modelyard.gateway.capabilities import capabilities_of
from modelyard.gateway.catalog import Filter, Known, Step
from modelyard.gateway.names import SHORTEST, Names, NotServed
from modelyard.registry import (
    AuditRecord,
    Json,
    ModelRecord,
    NewVersion,
    PolicyRecord,
    Registry,
    VersionRecord,
    VersionState,
)
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry

ASKING = 15.0  # seconds within which each source of a new version has to answer


class RegistryCatalog:
    """See `gateway.catalog.Catalog`."""

    def __init__(self, registry: Registry, held: Held, live: Live, driver: Driver, names: Names) -> None:
        self._registry = registry
        self._held = held
        self._live = live
        self._driver = driver
        self._names = names
        names.find = self._find
        live.registered = held.models

    @property
    def problem(self) -> str:
        """See Catalog.problem."""
        return self._held.problem

    # -- reading ------------------------------------------------------------------------------------------

    def get(self, name: str) -> Known:
        """See Catalog.get."""
        try:
            entry = self._names.resolve(name)
        except NotServed as registered:
            return self._of_version(registered.version)
        except ModelNotFound:
            if name not in self._held.broken:
                raise
            return self._unusable(name)
        current = self._names.model(entry.spec.model)
        return self._known(current) if entry is current else self._of_version(entry.spec.version)

    def _of_version(self, version: str) -> Known:
        """A version that is not the current one, as if it were."""
        name = version.rpartition("@")[0]
        holding = self._held.holdings[name]
        for number in holding.versions:
            model = self._held.making.model(self._live.config, holding, number)
            if model.spec.version == version:
                record = replace(holding.record, current=holding.version(number))
                entry = self._names.version(version) or self._entry(model)
                return Known(entry, record.aliases, record)
        raise ModelNotFound(f"There is no version {version} any more.", param="model")

    def _unusable(self, name: str) -> Known:
        """A registered model that cannot be served here. Raises ModelNotFound when it cannot even be told."""
        holding, reason = self._held.holdings[name], self._held.broken[name]
        try:
            entry = self._entry(self._held.making.model(self._live.config, holding))
        except ConfigErrors as error:
            message = f"{name} is registered, but it cannot be served here: {reason}"
            raise ModelNotFound(message, param="model") from error
        entry.problem = reason
        return Known(entry, holding.record.aliases, holding.record)

    def _entry(self, model: Model) -> Entry:
        """Its entry, as far as that can be told without looking at this machine."""
        profile = profile_of(self._live.config, model.spec.engine)
        return Entry(model.spec, model.policy, engines.load()[profile.type], profile, price=model.price)

    def page(self, where: Filter, after: str | None, limit: int) -> tuple[Sequence[Known], str | None]:
        """See Catalog.page."""
        found: list[Known] = []
        for name in self._behind(after):
            try:
                known = self.get(name)
            except ModelNotFound:  # it cannot even be told what it is
                continue
            if matches(known, where):
                if len(found) == limit:
                    return found, found[-1].name
                found.append(known)
        return found, None

    def versions(self, name: str) -> Sequence[VersionRecord]:
        """See Catalog.versions."""
        return tuple(self._holding(name).versions.values())

    def compare(self, name: str, one: int, other: int) -> Sequence[Value]:
        """See Catalog.compare."""
        holding, base = self._holding(name), self._live.config
        bare = replace(base, models=())
        models = (self._held.making.model(base, holding, number) for number in (one, other))
        before, after = (together(bare, [model]) for model in models)
        return [value for change in compare(before, after).models for value in change.fields]

    def _behind(self, after: str | None) -> Iterator[str]:
        """All names that are served or could be, in order."""
        mine = self._held.holdings.behind(after)
        files = (model.spec.model for model in self._live.config.models)
        of_file = iter(
            sorted(one for one in files if one not in self._held.holdings and (not after or one > after))
        )
        waiting = next(of_file, None)
        for name in mine:
            while waiting is not None and waiting < name:
                yield waiting
                waiting = next(of_file, None)
            yield name
        if waiting is not None:
            yield waiting
        yield from of_file

    def _known(self, entry: Entry) -> Known:
        name, config = entry.spec.model, self._live.config
        holding = self._held.holdings.get(name)
        if holding is not None and name not in self._held.broken:
            return Known(entry, holding.record.aliases, holding.record)
        place = str(nearest(config.positions, f"models.{name}") or "")
        return Known(entry, self._names.aliases_of(entry), None, place)

    def _holding(self, name: str) -> Holding:
        """Raises ModelNotFound, OwnedByFile."""
        holding = self._held.holdings.get(name)
        if holding is not None:
            return holding
        known = self.get(name)
        if known.record is None:
            place = f" ({known.place})" if known.place else ""
            raise OwnedByFile(f"{known.name} belongs to the configuration's file{place}: change it there")
        return self._held.holdings[known.name]

    def _find(self, model: str, reference: str, tag: bool) -> str | None:
        """See names.Find."""
        holding = self._held.holdings.get(model)
        number = holding.number_of(reference, tag=tag, shortest=SHORTEST) if holding is not None else None
        return None if number is None else self._key(model, number)

    def _key(self, name: str, number: int) -> str:
        return self._held.version(self._live.config, name, number)

    # -- changes ------------------------------------------------------------------------------------------

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
            raise SpecRefused(f"{which} is no part of a version: change the model (PATCH)", param=which)
        own = holding.record.name
        new = await self._new(own, parts.spec, holding.record.policy)
        async with self._held.changing:
            added = await self._registry.add_version(own, new, who=who, match=match)
            self._held.keep(added.model, added.version)
            return added.version, added.created

    async def promote(
        self, name: str, number: int | None, *, swap: bool, who: str, match: int | None, step: Step
    ) -> Known:
        """See Catalog.promote."""
        own = self._holding(name).record.name
        async with self._held.promoting(own):
            holding = self._holding(own)
            before = holding.record
            if number is None and before.previous is None:
                raise VersionNotFound(f"{own} had no other version before this one", param="version")
            chosen = holding.version(number or before.previous or 0)
            if chosen.number == before.current.number:
                return self.get(own)
            model = self._held.making.model(self._live.config, holding, chosen.number)

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
            which = next(iter(parts.spec))
            message = f"{which} makes another version: add one (POST …/versions), then promote it"
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

    async def policies(self, name: str) -> Sequence[PolicyRecord]:
        """See Catalog.policies."""
        return tuple(reversed(await self._registry.policies(self._holding(name).record.name)))

    async def audit(self, model: str | None, *, before: int | None, limit: int) -> Sequence[AuditRecord]:
        """See Catalog.audit."""
        return await self._registry.audit(model, before=before, limit=limit)

    async def tag(self, name: str, tag: str, number: int | None, *, who: str, match: int | None) -> Known:
        """See Catalog.tag."""
        async with self._held.changing:
            own = self._holding(name).record.name
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
            without = self._held.holdings.without(own)

            async def commit() -> None:
                await self._registry.delete(own, who=who, match=match)
                self._held.forget(own)

            await self._live.register(partial(self._held.models, holdings=without), commit)
            await self._restamp()
            return [
                key
                for key, version in self._driver.scheduler.state.versions.items()
                if version.spec.model == own and version.instances
            ]

    async def drained(self, versions: Sequence[str]) -> None:
        """See Catalog.drained."""
        await self._driver.gone(versions)

    async def bring(self, version: str) -> None:
        """See Catalog.bring."""
        name = version.rpartition("@")[0]
        holding = self._held.holdings.get(name)
        for number in holding.versions if holding is not None else ():
            if self._key(name, number) == version:
                await self._live.bring(
                    self._held.making.model(self._live.config, self._held.holdings[name], number)
                )
                return
        raise ModelNotFound(f"There is no version {version} any more.", param="model")

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
            raise _refused(error, name) from error
        await self._restamp()

    async def _restamp(self) -> None:
        """What was changed here need not be read again, unless others changed something too."""
        with suppress(RegistryUnavailable):
            stamp = await self._registry.stamp()
            if stamp == self._held.stamp + 1:
                self._held.stamp = stamp

    def _made(self, name: str, fields: Json) -> Model:
        """Raises SpecRefused."""
        try:
            return self._held.making.of_fields(self._live.config, name, fields)
        except ConfigErrors as error:
            raise _refused(error, name) from error

    async def _new(self, name: str, spec: Json, policy: Json) -> NewVersion:
        """A version that can be run here, and what it can do, as far as that is told without its files.
        Raises SpecRefused, and the StoreError of a source that has none, or what is of no use."""
        model = self._made(name, {**spec, **policy})
        try:
            entry = await self._live.check(model)
        except ConfigErrors as error:
            raise _refused(error, name) from error
        if entry.problem:
            raise SpecRefused(f"source: {entry.problem}", param="source")
        files = entry.files or await self._driver.files.ask(entry, ASKING)
        suited = entry.engine.suited(entry.spec, files)
        if suited and "parameters" not in spec:
            return await self._new(name, {**spec, "parameters": suited}, policy)
        return NewVersion(spec, model.spec.digest, capabilities_of(entry, files))

    def _refuse_taken(self, own: str, parts: Parts) -> None:
        """Raises NameTaken for a name or alias that means another model."""
        for name in (own, *parts.aliases):
            try:
                known = self._names.resolve(name)
            except ModelNotFound:
                continue
            if known.spec.model != own or (name == own and own not in self._held.holdings):
                whose = "a model" if name == known.spec.model else f"an alias of {known.spec.model}"
                raise NameTaken(f"{name} is {whose} already; choose another name", param="name")


def _first(name: str, parts: Parts, new: NewVersion) -> Holding:
    """A model that is about to be registered, as far as it decides what is served."""
    version = VersionRecord(
        name, 1, new.digest, new.spec, VersionState.REGISTERED, "", new.capabilities, 0.0, ""
    )
    record = ModelRecord(name, 1, "", "", version, None, parts.policy, parts.aliases, {}, 0.0, 0.0)
    return Holding(record, {1: version})


def _refused(error: ConfigErrors, name: str) -> ModelyardError:
    """The problems of a model that was asked for, with paths below it."""
    prefix = f"models.{name}."
    said = [f"{problem.path.removeprefix(prefix)}: {problem.message}" for problem in error.problems]
    return SpecRefused("; ".join(said), param=error.path.removeprefix(prefix) or None)
