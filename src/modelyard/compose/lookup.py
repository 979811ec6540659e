"""Models as data, as they are read: what a name means, pages of all, and what differs between two versions.

The part of `catalog` that changes nothing. What is held of the registry lies in memory; only its history and
the files of versions are asked for in the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import cast

from modelyard.compose.live import Live
from modelyard.compose.registered import Held, Holding
from modelyard.config import ConfigErrors
from modelyard.config.difference import Value, compare
from modelyard.config.together import profile_of, together
from modelyard.config.values import nearest
from modelyard.core.types import Policy, Spec
from modelyard.engines import registry as engines
from modelyard.engines.base import Engine, Profile
from modelyard.errors import ModelNotFound, ModelyardError, OwnedByFile, RegistryUnavailable, SpecRefused
from modelyard.gateway.capabilities import known_of, pairs_of
from modelyard.gateway.catalog import Filter, Known
from modelyard.gateway.names import SHORTEST, Names, NotServed
from modelyard.registry import Artifact, AuditRecord, PolicyRecord, Registry, VersionRecord
from modelyard.runtime.entries import Entry


class Lookup:
    """The reading half of `gateway.catalog.Catalog`."""

    def __init__(self, registry: Registry, held: Held, live: Live, names: Names) -> None:
        self._registry = registry
        self._held = held
        self._live = live
        self._names = names
        names.find = self._find

    @property
    def problem(self) -> str:
        """See Catalog.problem."""
        return self._held.problem

    @property
    def unkept(self) -> str:
        """See Catalog.unkept."""
        return self._held.unkept

    def get(self, name: str) -> Known:
        """See Catalog.get."""
        try:
            entry = self._names.resolve(name)
        except NotServed as registered:
            return self._of_version(registered.version)
        except ModelNotFound:
            holding = self._held.named(name)
            if holding is None:
                raise
            return self._not_served(holding)
        current = self._names.model(entry.spec.model)
        return self._known(current) if entry is current else self._of_version(entry.spec.version)

    def unserved(self, name: str) -> Known | None:
        """See Catalog.unserved."""
        return self._not_served(self._held.holdings[name]) if name in self._held.broken else None

    def page(self, where: Filter, after: str | None, limit: int) -> tuple[Sequence[Known], str | None]:
        """See Catalog.page."""
        found: list[Known] = []
        for name in self._behind(after):
            entry = self._names.own(name)
            if entry is None and not where.unusable:
                continue
            known = self._not_served(self._held.holdings[name]) if entry is None else self._known(entry)
            if _matches(known, where):
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
        try:
            models = [self._held.making.model(base, holding, number) for number in (one, other)]
        except ConfigErrors as error:
            raise refused(error, holding.record.name) from error
        before, after = (together(bare, [model]) for model in models)
        return [value for change in compare(before, after).models for value in change.fields]

    async def artifacts(self, name: str, number: int) -> Sequence[Artifact] | None:
        """See Catalog.artifacts."""
        if not self._held.problem:
            with suppress(RegistryUnavailable):
                return await self._registry.artifacts(self._holding(name).record.name, number)
        return None

    async def policies(self, name: str, *, before: int | None, limit: int) -> Sequence[PolicyRecord]:
        """See Catalog.policies."""
        return await self._registry.policies(self._holding(name).record.name, before=before, limit=limit)

    async def audit(self, model: str | None, *, before: int | None, limit: int) -> Sequence[AuditRecord]:
        """See Catalog.audit."""
        return await self._registry.audit(model, before=before, limit=limit)

    # -- one model ----------------------------------------------------------------------------------------

    def _known(self, entry: Entry) -> Known:
        """A model that is served."""
        name, config = entry.spec.model, self._live.config
        holding = self._held.holdings.get(name)
        if holding is not None and name not in self._held.broken:
            return Known(entry, holding.record.aliases, holding.record)
        place = str(nearest(config.positions, f"models.{name}") or "")
        return Known(entry, self._names.aliases_of(entry), None, place)

    def _of_version(self, version: str) -> Known:
        """A version that is not the current one, by its key."""
        holding, number = self._numbered(version)
        entry = self._names.version(version) or self._entry(holding, number)
        return Known(entry, holding.record.aliases, holding.record, other=holding.version(number))

    def _not_served(self, holding: Holding) -> Known:
        """A registered model that cannot be served here."""
        record = holding.record
        entry = self._entry(holding, record.current.number)
        entry.problem = self._held.broken.get(record.name, entry.problem)
        return Known(entry, record.aliases, record)

    def _entry(self, holding: Holding, number: int) -> Entry:
        """A version's entry, as far as that can be told without looking at this machine."""
        config = self._live.config
        try:
            model = self._held.making.model(config, holding, number)
        except ConfigErrors as error:
            return self._unmade(holding, number, str(error))
        profile = profile_of(config, model.spec.engine)
        return Entry(model.spec, model.policy, engines.load()[profile.type], profile, price=model.price)

    def _unmade(self, holding: Holding, number: int, problem: str) -> Entry:
        """That of a version which this program cannot make, e.g. since its engine is gone: its name, its
        source, and the policy if that alone can be read."""
        name, version = holding.record.name, holding.version(number)
        engine, source = (str(version.spec.get(field) or "") for field in ("engine", "source"))
        policy = Policy()
        with suppress(ConfigErrors):
            fields = {**holding.record.policy, "engine": next(iter(engines.load()))}
            policy = self._held.making.of_fields(self._live.config, name, fields).policy
        spec = Spec(name, version.digest, engine, source)
        return Entry(spec, policy, cast(Engine, _Gone(engine)), Profile(engine, engine), problem=problem)

    # -- what is held -------------------------------------------------------------------------------------

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

    def _holding(self, name: str) -> Holding:
        """Raises ModelNotFound, OwnedByFile."""
        holding = self._held.holdings.get(name)
        if holding is not None:
            return holding
        known = self.get(name)
        if known.record is None:
            raise OwnedByFile.at(known.name, known.place)
        return self._held.holdings[known.name]

    def _find(self, model: str, reference: str, tag: bool) -> str | None:
        """See names.Find."""
        holding = self._held.holdings.get(model)
        number = holding.number_of(reference, tag=tag, shortest=SHORTEST) if holding is not None else None
        return None if number is None else self._held.version(self._live.config, model, number)

    def _numbered(self, version: str) -> tuple[Holding, int]:
        """The version of this key. Raises ModelNotFound."""
        name = version.rpartition("@")[0]
        holding = self._held.holdings.get(name)
        for number in holding.versions if holding is not None else ():
            if holding is not None and self._held.version(self._live.config, name, number) == version:
                return holding, number
        raise ModelNotFound(f"There is no version {version} any more.", param="model")


class _Gone:
    """In place of an engine that is not here any more, as far as one is asked without being run: it answers
    nothing, and its one file is the spec's."""

    def __init__(self, type: str) -> None:
        self.type = type

    def paths(self, spec: Spec) -> frozenset[str]:
        return frozenset()

    def sources(self, spec: Spec) -> Mapping[str, str]:
        return {"model": spec.source} if spec.source else {}


def _matches(known: Known, where: Filter) -> bool:
    if where.name and where.name.casefold() not in known.name.casefold():
        return False
    if where.capability and where.capability not in known_of(known).features:
        return False
    return where.pair is None or _translates(known, *where.pair)


def _translates(known: Known, source: str, target: str) -> bool:
    """As it is here, or as the registry keeps it."""
    kept = [known.record.current.capabilities] if known.record is not None else []
    return any(pairs_of(can).find(source, target) for can in (known_of(known), *kept))


def refused(error: ConfigErrors, name: str, section: str = "models") -> ModelyardError:
    """The problems of a model (or of what else stands in this section) that was asked for, with paths below
    it."""
    prefix = f"{section}.{name}."
    said = [f"{problem.path.removeprefix(prefix)}: {problem.message}" for problem in error.problems]
    return SpecRefused("; ".join(said), param=error.path.removeprefix(prefix) or None)
