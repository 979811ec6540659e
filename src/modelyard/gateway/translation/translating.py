"""Has texts translated by models: along the first route on which it can be done, one step after the other.

Called by the translation lane. Of each step the requests are ordinary ones of its model (`steps`), made on
behalf of the client's: they wait, are retried, counted and limited as every other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from modelyard import languages
from modelyard.config import Translation
from modelyard.core.routing import Kind, Route
from modelyard.engines.base import TRANSLATE
from modelyard.errors import (
    Busy,
    ContextOverflow,
    ModelNotFound,
    ModelRemoved,
    ModelyardError,
    NotSupported,
    RequestDeadline,
    ServiceError,
    StoreError,
    UnsupportedLanguage,
)
from modelyard.gateway.exchange import Exchange
from modelyard.gateway.names import Bring, Names
from modelyard.gateway.serve import Service
from modelyard.gateway.translation.languages_list import codes_of, languages_view
from modelyard.gateway.translation.pairs import Translators
from modelyard.gateway.translation.recent import Recent
from modelyard.gateway.translation.steps import Done, Job, Steps
from modelyard.runtime.entries import Entry

_NEXT = (Busy, ServiceError, StoreError, ModelNotFound, ModelRemoved, NotSupported, ContextOverflow)
"""What one model cannot do now, and another may."""


class Translating:
    def __init__(self, service: Service, names: Names, bring: Bring, router: Translators) -> None:
        self._steps = Steps(service, names, bring)
        self._names = names
        self._bring = bring
        self._router = router
        self._usage = service.usage
        self._recent = Recent()

    async def model(self, name: str | None, settings: Translation) -> Entry | None:
        """The model that was asked for. Raises ModelNotFound, NotSupported."""
        if name is None:
            return None
        entry = await self._names.reach(name, self._bring)
        if TRANSLATE not in entry.paths and entry is not self._names.whole(settings.llm):
            raise NotSupported(
                f"{entry.spec.model} (engine {entry.engine.type}) does not translate.", param="model"
            )
        return entry

    def codes(self, model: Entry | None, settings: Translation) -> tuple[frozenset[str], frozenset[str]]:
        """All languages to translate from, and to: by one model, or by those that there are."""
        if model is not None and TRANSLATE in model.paths:
            return codes_of([model.pairs], any_other=not model.pairs)
        kept = self._names.whole(settings.fallback) if settings.fallback else None
        pairs = [each.pairs for each in self._router.candidates()] + ([kept.pairs] if kept else [])
        return codes_of(pairs, any_other=bool(self._router.llm()))

    def languages(self, settings: Translation) -> list[dict[str, object]]:
        """See `languages_list.languages_view`."""
        return languages_view(self._router.candidates(), settings.pivot, any_other=bool(self._router.llm()))

    async def run(self, exchange: Exchange, job: Job, settings: Translation) -> Done:
        """Raises UnsupportedLanguage when nobody translates this pair, else what the first route failed with
        when none could. When the time of a request was over, only what takes none is tried."""
        first: ModelyardError | None = None
        found = list(self._routes(job))
        if found:
            model = job.model.spec.model if job.model else ""
            self._usage.translated((job.source, job.target, model))
        waited = 0.0
        for route in found:
            done = Done(list(job.texts), route, waited=waited)
            if isinstance(first, RequestDeadline) and route.kind is not Kind.FIXED:
                continue
            try:
                return await self._along(exchange, done, job, settings)
            except _NEXT as error:
                waited = done.waited
                first = error if isinstance(error, RequestDeadline) else first or error
        if first is not None:
            raise first
        over = f" over {job.pivot}" if isinstance(job.pivot, str) else ""
        by = f" by {job.model.spec.model}" if job.model else ""
        by += " on this machine" if job.local_only else ""
        named = [f"{languages.name(code)} ({code})" for code in (job.source, job.target)]
        elsewhere = self._router.routes(job.source, job.target, job.model) if job.local_only else []
        if elsewhere:
            raise UnsupportedLanguage(
                f"{' to '.join(named)} is translated here only at another server, by "
                f"{' > '.join(step.model for step in elsewhere[0].steps)}, and `local_only` keeps this text "
                "on this machine.",
                param="target",
            )
        raise UnsupportedLanguage(
            f"Nothing here translates {' to '.join(named)}{over}{by}; GET /languages lists what is.",
            param="target",
        )

    def _routes(self, job: Job) -> Iterator[Route]:
        for route in self._router.routes(job.source, job.target, job.model, local_only=job.local_only):
            over = {route.steps[0].target} if route.kind is Kind.PIVOT else set()
            meant = languages.near(job.pivot, frozenset(over)) if isinstance(job.pivot, str) else ()
            if job.pivot is None or any(meant) or (job.pivot is False and not over):
                yield route

    async def _along(self, exchange: Exchange, done: Done, job: Job, settings: Translation) -> Done:
        route = done.route
        if route.kind is Kind.FIXED:
            return Done([route.text] * len(job.texts), route)
        key = await self._key(route, job, settings) if settings.cache and not job.alternatives else None
        left = list(range(len(job.texts)))
        if key is not None:
            known = [self._recent.get((*key, text)) for text in job.texts]
            left = [index for index in left if known[index] is None]
            done.texts = [text if kept is None else kept for kept, text in zip(known, job.texts, strict=True)]
        for step in route.steps:
            one = replace(job, alternatives=job.alternatives if step is route.steps[-1] else 0)
            await self._steps.take(exchange, step, one, done, left, settings)
            left = [index for index in left if index not in done.errors]
        if key is not None:
            for index in left:
                self._recent.put((*key, job.texts[index]), done.texts[index] or "", settings.cache)
        return done

    async def _key(self, route: Route, job: Job, settings: Translation) -> tuple[tuple[str, ...], str, str]:
        entries = [await self._names.reach(step.model, self._bring) for step in route.steps]
        told = (settings.prompt,) if route.kind is Kind.LLM else ()
        return (*(entry.spec.version for entry in entries), *told), job.source, job.target
