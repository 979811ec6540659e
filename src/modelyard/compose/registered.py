"""The registered models as serving needs them: what the registry has of each, in memory and as configuration.

Used by `catalog`, which changes them, and by `upkeep`, which keeps them true.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import structlog

from modelyard.compose.additions import Additions, check_parameters
from modelyard.config import Config, ConfigErrors, Model
from modelyard.config.build import model_of
from modelyard.config.schema import PolicySection
from modelyard.config.together import profile_of, together
from modelyard.config.versions import keyed
from modelyard.core.languages import NO_PAIRS, Pairs
from modelyard.core.types import Spec
from modelyard.engines import registry as engines
from modelyard.errors import ModelNotFound, VersionNotFound
from modelyard.gateway.capabilities import pairs_of
from modelyard.gateway.names import Names
from modelyard.registry.records import Json, ModelRecord, VersionRecord
from modelyard.runtime.entries import Entry

log = structlog.get_logger(__name__)

OF_POLICY = frozenset(PolicySection.model_fields)


@dataclass(frozen=True, slots=True)
class Parts:
    """The fields of a model's entry: those that make the version, those of policy, and its aliases."""

    spec: Json
    policy: Json
    aliases: tuple[str, ...]

    @classmethod
    def of(cls, fields: Json) -> Parts:
        aliases = fields.get("aliases") or ()
        return cls(
            {name: value for name, value in fields.items() if name not in OF_POLICY and name != "aliases"},
            {name: value for name, value in fields.items() if name in OF_POLICY},
            (aliases,) if isinstance(aliases, str) else tuple(aliases),  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True)
class Holding:
    """A registered model with its versions, by number."""

    record: ModelRecord
    versions: Mapping[int, VersionRecord] = field(repr=False)

    def version(self, number: int) -> VersionRecord:
        """Raises VersionNotFound."""
        found = self.versions.get(number)
        if found is None:
            last = max(self.versions)
            message = f"{self.record.name} has no version {number}; it has 1 to {last}"
            raise VersionNotFound(message, param="version")
        return found

    def number_of(self, reference: str, *, tag: bool, shortest: int) -> int | None:
        """The version that a number, at least `shortest` digits of a digest, or a tag names. Raises
        ModelNotFound for digits that several versions' digests begin with."""
        if tag:
            return self.record.tags.get(reference)
        if reference.isdecimal() and len(reference) < shortest and int(reference) in self.versions:
            return int(reference)
        if len(reference) < shortest:
            return None
        found = [one for one in self.versions.values() if one.digest.startswith(reference)]
        if len(found) > 1:
            name = self.record.name
            may = " or ".join(f"{name}@{one.number} ({one.digest})" for one in found)
            raise ModelNotFound(f"{name}@{reference} may be {may}; write more of it", param="model")
        return next((one.number for one in found), None)

    def fields(self, number: int) -> dict[str, object]:
        """An entry under `models:` that says what this version and the model's policy do."""
        record = self.record
        return {**self.version(number).spec, **record.policy, "aliases": list(record.aliases)}


class Holdings(Mapping[str, Holding]):
    """Registered models by name. Never changed: `with_one` and `without` make another."""

    __slots__ = ("_by_name", "_order")

    def __init__(self, holdings: Iterable[Holding] = ()) -> None:
        self._by_name = {one.record.name: one for one in holdings}
        self._order = sorted(self._by_name)

    def __getitem__(self, name: str) -> Holding:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def behind(self, name: str | None) -> Iterator[str]:
        """The names behind this one, in order."""
        at = 0 if name is None else bisect_right(self._order, name)
        return (self._order[index] for index in range(at, len(self._order)))

    def with_one(self, holding: Holding) -> Holdings:
        made = Holdings()
        name = holding.record.name
        made._by_name = {**self._by_name, name: holding}
        made._order = self._order.copy()
        if name not in self._by_name:
            insort(made._order, name)
        return made

    def without(self, name: str) -> Holdings:
        made = Holdings()
        made._by_name = {other: one for other, one in self._by_name.items() if other != name}
        made._order = [other for other in self._order if other != name]
        return made


class Making:
    """Versions as configuration has them, each made once as long as what it is made of stays the same."""

    def __init__(self) -> None:
        self.key = ""  # of digests that may hold a secret; empty: this process's own
        self._made: dict[tuple[str, int], tuple[tuple[object, ...], Model]] = {}

    def model(self, base: Config, holding: Holding, number: int | None = None) -> Model:
        """A version (default: the current one) with its model's policy. Raises ConfigErrors."""
        name, number = holding.record.name, number or holding.record.current.number
        fields = holding.fields(number)
        profile = profile_of(base, str(fields.get("engine")))
        made_of = (fields, profile, base.defaults, base.allow_programs, self.key)
        known = self._made.get((name, number))
        if known is not None and known[0] == made_of:
            return known[1]
        model = self.of_fields(base, name, fields)
        self._made[name, number] = made_of, model
        return model

    def of_fields(self, base: Config, name: str, fields: Json) -> Model:
        """Raises ConfigErrors."""
        model = model_of(name, fields, base, engine_types=engines.load().keys())
        check_parameters(base, name, fields)
        if not self.key:
            return model
        alone = together(Config(base.server, profiles=base.profiles), [model])
        return keyed(alone, self.key).models[0]

    def forget(self, name: str) -> None:
        for known in [known for known in self._made if known[0] == name]:
            del self._made[known]


class Held:
    """All that is held of the registry. `changing` is taken by whoever changes it, for a moment, and
    `promoting` before that, for as long as a version of this model loads. `broken` are models that cannot be
    served here, and why; `left_out` are keys and profiles that cannot be had here, and `unusable` says why,
    by path (`keys.NAME`, `engines.NAME`); `problem` is why the registry cannot be changed, empty when it
    can."""

    def __init__(self) -> None:
        self.holdings = Holdings()
        self.making = Making()
        self.broken: dict[str, str] = {}
        self.left_out = Additions()
        self.unusable: dict[str, str] = {}
        self.changing = asyncio.Lock()
        self._promoting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.stamp = -1  # of the registry, when all of it was read
        self.problem = ""
        self.unkept = ""  # why what was used and learned is not kept, empty when it is

    def promoting(self, name: str) -> asyncio.Lock:
        return self._promoting.setdefault(name, asyncio.Lock())

    def unknown_keys(self) -> str:
        """Why not all keys of the registry are in force; empty when they are."""
        if self.left_out.keys and not self.problem:
            return "keys of the registry have names that the file has, and are left out"
        return self.problem

    @property
    def served(self) -> Iterator[str]:
        """Names, in order."""
        return (name for name in self.holdings if name not in self.broken)

    def models(
        self, base: Config, holdings: Holdings | None = None, broken: Collection[str] | None = None
    ) -> tuple[Model, ...]:
        """Those of `holdings` that are not `broken` (default: what is held). Raises ConfigErrors."""
        found = self.holdings if holdings is None else holdings
        without = self.broken if broken is None else broken
        return tuple(self.making.model(base, one) for name, one in found.items() if name not in without)

    def pairs(self, entry: Entry) -> Pairs:
        """What the registry has of what a version translates."""
        holding = self.holdings.get(entry.spec.model)
        versions = holding.versions.values() if holding is not None else ()
        found = (one.capabilities for one in versions if entry.spec.digest == one.digest)
        return next(map(pairs_of, found), NO_PAIRS)

    def version(self, base: Config, name: str, number: int) -> str:
        """The key of a version as it is served with `base`; of one that cannot be made, as it was."""
        holding = self.holdings[name]
        try:
            return self.making.model(base, holding, number).spec.version
        except ConfigErrors:
            return Spec(name, holding.version(number).digest, "").version

    def named(self, name: str) -> Holding | None:
        """The model of this name, or of this alias among those that cannot be served."""
        alias = (one for one in self.broken if name in self.holdings[one].record.aliases)
        return self.holdings.get(name) or next(map(self.holdings.__getitem__, alias), None)

    def keep(self, record: ModelRecord, *found: VersionRecord) -> None:
        """What the registry has of a model now; `found` are versions that are new or changed."""
        known = self.holdings.get(record.name)
        versions = dict(known.versions) if known is not None else {}
        versions |= {one.number: one for one in (*found, record.current)}
        self.holdings = self.holdings.with_one(Holding(record, versions))

    def forget(self, name: str) -> None:
        self.holdings = self.holdings.without(name)
        self.making.forget(name)
        self.broken.pop(name, None)

    def mended(self, path: str) -> None:
        """What was left out at this path was replaced or removed."""
        self.left_out = self.left_out.without({path})
        self.unusable.pop(path, None)


def warn_of_shadows(before: Config, after: Config, names: Names) -> None:
    """Say which tags nobody reaches any more, since a name or an alias that came reads like them."""
    old, new = (
        {name for model in config.models for name in (model.spec.model, *model.aliases)}
        for config in (before, after)
    )
    for name in sorted(new - old):
        if version := names.tagged(name):
            log.warning("tag.shadowed", name=name, version=version, hint="a whole name comes before a tag")
