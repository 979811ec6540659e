"""Who translates what at the moment: the models as the router sees them. Asked by whoever translates, and by
compose for what is to be loaded ahead. Loads nothing and asks nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from modelyard.config import Translation
from modelyard.core.admission import expected
from modelyard.core.languages import NO_PAIRS, Pair, Pairs
from modelyard.core.routing import Candidate, Kind, Route, Rules, Step, routes
from modelyard.engines.base import TRANSLATE
from modelyard.engines.openai_http import CHAT
from modelyard.errors import ModelNotFound
from modelyard.gateway.names import Names
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.telemetry.usage import Asked


class Translators:
    """The models that translate. `setting` is the configuration as it is now, `kept` what the registry has of
    what a model translates, whose files are not here."""

    def __init__(
        self,
        driver: Driver,
        names: Names,
        setting: Callable[[], Translation],
        kept: Callable[[Entry], Pairs] = lambda entry: NO_PAIRS,
    ) -> None:
        self._driver = driver
        self._names = names
        self._setting = setting
        self._kept = kept

    def entries(self) -> Iterator[Entry]:
        """Those that are served and translate, whatever is known of their pairs."""
        return (entry for entry in self._names.all() if TRANSLATE in entry.paths)

    def candidates(self) -> list[Candidate]:
        """The models that translations are routed to, as they are now: not the one that is kept for when no
        other can, nor, where no text may leave this machine, those elsewhere."""
        setting = self._setting()
        kept = self._entry(setting.fallback)
        found = (self._candidate(entry) for entry in self.entries() if entry is not kept)
        return [each for each in found if each.local or not setting.local_only]

    def routes(
        self, source: str, target: str, model: Entry | None = None, *, local_only: bool = False
    ) -> list[Route]:
        """All ways to translate between two languages, the one to try first first. With a `model` that was
        asked for, by it alone, or by what is kept for when it cannot. None: no model has the pair."""
        setting = self._setting()
        local_only = local_only or setting.local_only
        rules = Rules(
            pivots=setting.pivot,
            spill_after=setting.spill_after,
            local_only=local_only,
            llm=self._llm(setting, model, local_only=local_only),
            fallback=self._fallback(setting, (source, target)),
            fixed=setting.fixed,
        )
        candidates = self.candidates() if model is None else self._asked_for(model, (source, target))
        found = routes(candidates, source, target, rules)
        # An answer that is no translation is better than an error, but not for a pair that does not exist.
        return found if any(route.kind is not Kind.FIXED for route in found) else []

    def llm(self) -> str:
        """The language model that is asked where no other can; empty when none can be."""
        setting = self._setting()
        return self._llm(setting, None, local_only=setting.local_only)

    # -- ahead --------------------------------------------------------------------------------------------

    def preloaded(self, asked: Iterable[Asked]) -> list[Entry]:
        """The models that these translations want in memory, in their order."""
        wanted: dict[str, Entry] = {}
        for source, target, model in asked:
            steps = self._preloaded_for((source, target), model, wanted)
            wanted |= {step.model: self._names.resolve(step.model) for step in steps}
        return list(wanted.values())

    def _preloaded_for(self, pair: Pair, model: str, wanted: Mapping[str, Entry]) -> Sequence[Step]:
        """The steps of the route that a pair takes when those that are wanted already are loaded; by this
        model alone, where one was named."""
        entry = self._entry(model)
        if model and entry is None:
            return ()
        candidates = [
            replace(each, ready=each.ready or each.model in wanted, load_seconds=0.0)
            for each in (self.candidates() if entry is None else self._asked_for(entry, pair))
        ]
        found = routes(candidates, *pair, Rules(self._setting().pivot))
        return found[0].steps if found else ()

    def untold(self) -> list[Entry]:
        """Those elsewhere that only tell what they translate when they are loaded, which takes no memory."""
        if self._setting().local_only:
            return []
        return [
            entry
            for entry in self.entries()
            if not entry.pairs and entry.engine.elsewhere(entry.spec) and entry.engine.languages(entry.spec)
        ]

    # -- one model ----------------------------------------------------------------------------------------

    def _candidate(self, entry: Entry, pairs: Pairs = NO_PAIRS) -> Candidate:
        scheduler = self._driver.scheduler
        version = scheduler.state.versions.get(entry.spec.version)
        load = wait = 0.0
        if version is not None:
            now = asyncio.get_running_loop().time()
            load, wait = expected(scheduler.state, scheduler.sums, version, now)
        own = self._names.own(entry.spec.model) is entry
        return Candidate(
            entry.spec.model if own else entry.spec.version,
            pairs or entry.pairs or self._kept(entry),
            quality=entry.policy.quality,
            ready=version is not None and bool(version.ready),
            load_seconds=load,
            wait=wait,
            local=not entry.engine.elsewhere(entry.spec),
            cost=entry.price.input + entry.price.output,
        )

    def _asked_for(self, entry: Entry, pair: Pair) -> list[Candidate]:
        """One that was asked for by its name is tried where nobody knows what it translates."""
        if TRANSLATE not in entry.paths:
            return []
        return [self._candidate(entry, entry.pairs or self._kept(entry) or Pairs(frozenset({pair})))]

    def _llm(self, setting: Translation, model: Entry | None, *, local_only: bool) -> str:
        """Its name when it may be asked."""
        entry = self._entry(setting.llm)
        if entry is None or CHAT not in entry.paths or model not in (None, entry):
            return ""
        return "" if local_only and entry.engine.elsewhere(entry.spec) else setting.llm

    def _fallback(self, setting: Translation, pair: Pair) -> Candidate | None:
        entry = self._entry(setting.fallback)
        return next(iter(self._asked_for(entry, pair)), None) if entry is not None else None

    def _entry(self, name: str) -> Entry | None:
        """The model of this name, if it is served."""
        try:
            return self._names.resolve(name) if name else None
        except ModelNotFound:
            return None
