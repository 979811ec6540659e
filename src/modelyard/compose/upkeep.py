"""The registry as it is followed: read at the start, when another server changed it, and when it comes back.

Owned by `yard`. While the database is away, what is held goes on to be served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial

import structlog

from modelyard.compose.additions import Additions, remember_keys
from modelyard.compose.live import Live
from modelyard.compose.registered import Held, Holding, Holdings
from modelyard.config import Config, ConfigErrors
from modelyard.config.together import NameClash
from modelyard.errors import ConfigError, RegistryUnavailable
from modelyard.gateway.capabilities import capabilities_of
from modelyard.gateway.names import Names
from modelyard.registry import Artifact, Registry, VersionState
from modelyard.runtime.entries import Entry

log = structlog.get_logger(__name__)

LOOK_EVERY = 5.0  # seconds between two looks whether another server has changed something
OPENING = 10.0  # seconds that a start waits for the database
REPORTS = 20  # models at each look of which it is kept what their files have told


class Upkeep:
    """Keeps what is held of a registry true: `open` and `read` at the start, `follow` until the end."""

    def __init__(self, registry: Registry, held: Held, live: Live, names: Names) -> None:
        self._registry = registry
        self._held = held
        self._live = live
        self._names = names
        self._is_starting = True
        self._read_with: tuple[Config, Additions] | None = None  # the file, and what came to it

    async def open(self) -> str:
        """Bring the database's schema up to date; returns the key of digests, empty while the database is
        away. Raises ConfigError when a newer program has made the schema."""
        try:
            async with asyncio.timeout(OPENING):
                opened = await self._registry.open()
                if opened.copies:
                    told = {"database": self._registry.name, "copies": [str(path) for path in opened.copies]}
                    log.warning(
                        "registry.new", **told, hint="a new registry was begun; copies of one are there"
                    )
                self._held.making.key = await self._registry.digest_key()
        except (RegistryUnavailable, TimeoutError) as error:
            self._away(error)
        return self._held.making.key

    async def read(self) -> None:
        """Serve what the registry has. Raises ConfigErrors for a name that a file has as well."""
        if self._held.problem:
            return
        try:
            async with self._held.changing:
                await self._read()
        except RegistryUnavailable as error:
            self._away(error)

    async def follow(self) -> None:
        """Serve what other servers change, and keep what was found out, until cancelled."""
        self._is_starting = False
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                async with self._held.changing:
                    stamp = await self._registry.stamp()
                    made_all = self._registry.made_all(self._held.stamp, stamp)
                    if self._may_be_mended() or not made_all:
                        await self._read()
                    else:
                        self._held.stamp = stamp
                    await self._report()
                if self._held.problem:
                    log.info("registry.back", database=self._registry.name)
                self._held.problem = ""
            except RegistryUnavailable as error:
                self._away(error)
            except ConfigError as error:
                self._held.problem = str(error)
                log.error("registry.refused", problem=str(error))
            except Exception:
                log.exception("registry.failed")

    def _may_be_mended(self) -> bool:
        """Whether something that cannot be had here is worth another try: the file has changed since, or a
        profile or key did."""
        if not (self._held.broken or self._held.unusable) or self._read_with is None:
            return False
        base, additions = self._read_with
        return base is not self._live.base or additions is not self._live.additions

    async def close(self) -> None:
        await self._registry.close()

    def _away(self, error: Exception) -> None:
        message = str(error) or f"{self._registry.name} did not answer within {OPENING:g} s"
        if message != self._held.problem:
            log.error("registry.away", problem=message)
        self._held.problem = message

    async def _read(self) -> None:
        """All of it. A model that cannot be served here is left out and said, the others are served. At a
        start, raises ConfigErrors for a name that a file has as well."""
        held, found = self._held, await self._registry.all()
        held.making.key = held.making.key or await self._registry.digest_key()
        holdings = Holdings(
            Holding(record, {one.number: one for one in found.versions[record.name]})
            for record in found.models
        )

        base, everything = self._live.base, self._live.additions.then(found.keys, found.profiles)
        unusable = self._unusable(everything)
        additions = everything.without(unusable)
        broken: dict[str, str] = {}

        async def keep() -> None:
            held.holdings, held.broken, held.stamp = holdings, broken, found.stamp
            held.left_out, held.unusable = everything.only(unusable), unusable
            self._read_with = base, additions

        while True:
            try:
                models = partial(held.models, holdings=holdings, broken=broken)
                await self._live.register(models, keep, additions)
                remember_keys(self._live.config, bool(found.keys))  # though they may all be left out here
                return
            except ConfigErrors as error:
                if isinstance(error, NameClash) and not self._is_starting:  # another server registered it
                    blamed = {name: str(error) for name in error.models}
                else:
                    blamed = self._blamed(error, holdings, broken)
                if not blamed:
                    raise
                for name, reason in blamed.items():
                    if held.broken.get(name) != reason:
                        log.error("model.unusable", model=name, reason=reason)
                broken |= blamed

    def _unusable(self, additions: Additions) -> dict[str, str]:
        """The keys and profiles that cannot be had here, and why, which is said once. At a start a name
        that the file has as well is none of these."""
        base = self._live.base
        without = additions.problems(base)
        if self._is_starting:
            without = {path: why for path, why in without.items() if path not in additions.clashes(base)}
        for path, reason in without.items():
            if self._held.unusable.get(path) != reason:
                log.error("registry.unusable", path=path, reason=reason)
        return without

    def _blamed(self, error: ConfigErrors, holdings: Holdings, broken: Collection[str]) -> dict[str, str]:
        """The registered models that an error is about, and that are not known to be broken."""
        of_file = {model.spec.model for model in self._live.config.models} - self._held.holdings.keys()
        return {
            name: str(problem)
            for problem in error.problems
            for name in _named(problem.path, holdings)
            if name not in of_file and name not in broken
        }

    async def _report(self) -> None:
        """Keep what the files of current versions have told: of a few models, since others wait meanwhile
        with their changes; the next turn goes on."""
        held, reported = self._held, 0
        for name in tuple(held.served):
            if reported == REPORTS:
                return
            record = held.holdings[name].record
            entry = self._names.model(name)
            if entry.files is None and not entry.problem:
                continue
            state = VersionState.VERIFIED if entry.files is not None else VersionState.FAILED
            if state is record.current.state or record.current.state is VersionState.VERIFIED:
                continue  # what another server has, this one may lack
            told = await self._registry.report(
                name,
                record.current.number,
                state,
                who="server",
                detail=entry.problem if state is VersionState.FAILED else "",
                capabilities=capabilities_of(entry) if entry.files is not None else None,
                artifacts=_artifacts(entry),
            )
            held.keep(replace(record, current=told), told)
            reported += 1


def _artifacts(entry: Entry) -> list[Artifact] | None:
    """The files that it is run with; None while they are not here."""
    if entry.files is None:
        return None
    sources = entry.engine.sources(entry.spec)
    return [
        Artifact(role, sources.get(role, ""), file.size, file.digest, file.licence)
        for role, file in entry.files.items()
    ]


def _named(path: str, holdings: Holdings) -> Iterator[str]:
    """The registered model that a path such as `models.a.source` is below; names may hold dots."""
    rest = path.removeprefix("models.")
    return (name for name in holdings if rest == name or rest.startswith(f"{name}."))
