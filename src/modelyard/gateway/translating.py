"""Has texts translated by models: along the first route on which it can be done, one step after the other.

Called by the translation lane. Each step is an ordinary request of its model through the serve loop, made on
behalf of the client's: it waits, is retried, counted and limited as every other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from modelyard import languages
from modelyard.config import Translation
from modelyard.core.routing import Kind, Route, Step
from modelyard.core.types import Priority
from modelyard.engines.base import TRANSLATE
from modelyard.errors import (
    Busy,
    ContextOverflow,
    EngineProtocol,
    ModelNotFound,
    ModelRemoved,
    ModelyardError,
    NotSupported,
    ServiceError,
    StoreError,
    UnsupportedLanguage,
)
from modelyard.gateway.chunks import choice_of, object_of
from modelyard.gateway.demand import Demand
from modelyard.gateway.exchange import Disconnected, Exchange
from modelyard.gateway.inner import Inner, Told
from modelyard.gateway.languages_list import codes_of, languages_view
from modelyard.gateway.names import Bring, Names
from modelyard.gateway.pairs import CHAT, Translators
from modelyard.gateway.recent import Recent
from modelyard.gateway.serve import Service
from modelyard.runtime.entries import Entry
from modelyard.wire.errors import ProtocolError

KIND = "translation"
OURS = b"x-modelyard-"
TOGETHER = 256  # texts of one request to an engine
USAGE = ("segments", "input_tokens", "output_tokens")
_AS_CHAT = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
_NEXT = (Busy, ServiceError, StoreError, ModelNotFound, ModelRemoved, NotSupported)
"""What one model cannot do now, and another may."""


@dataclass(frozen=True, slots=True)
class Job:
    """Texts of one language, none of them blank. `model`: by this one alone."""

    texts: Sequence[str]
    source: str
    target: str
    model: Entry | None = None
    alternatives: int = 0
    partial: bool = False
    pivot: str | bool | None = None
    local_only: bool = False
    priority: Priority | None = None


@dataclass(slots=True)
class Done:
    """`texts` are None, and `errors` say why, where a text could not be translated; of a job that is not
    `partial` all are there. `headers` are those of the last answer that says how it came about."""

    texts: list[str | None]
    route: Route
    alternatives: dict[int, list[str]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=lambda: dict.fromkeys(USAGE, 0))
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Translating:
    def __init__(self, service: Service, names: Names, bring: Bring, router: Translators) -> None:
        self._service = service
        self._names = names
        self._bring = bring
        self._router = router
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
        return codes_of(pairs, any_other=bool(settings.llm))

    def languages(self, settings: Translation) -> list[dict[str, object]]:
        """See `languages_list`."""
        return languages_view(self._router.candidates(), settings)

    async def run(self, exchange: Exchange, job: Job, settings: Translation) -> Done:
        """Raises UnsupportedLanguage when nobody translates this pair, else what the first route failed with
        when none could."""
        first: ModelyardError | None = None
        for route in self._routes(job):
            try:
                return await self._along(exchange, route, job, settings)
            except _NEXT as error:
                first = first or error
        if first is not None:
            raise first
        over = f" over {job.pivot}" if isinstance(job.pivot, str) else ""
        by = f" by {job.model.spec.model}" if job.model else ""
        by += " on this machine" if job.local_only else ""
        named = [f"{languages.name(code)} ({code})" for code in (job.source, job.target)]
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

    async def _along(self, exchange: Exchange, route: Route, job: Job, settings: Translation) -> Done:
        if route.kind is Kind.FIXED:
            return Done([route.text] * len(job.texts), route)
        done = Done(list(job.texts), route)
        key = await self._key(route, job) if settings.cache and not job.alternatives else None
        left = list(range(len(job.texts)))
        if key is not None:
            for index in tuple(left):
                if (kept := self._recent.get((*key, job.texts[index]))) is not None:
                    done.texts[index] = kept
                    left.remove(index)
        for step in route.steps:
            one = replace(job, alternatives=job.alternatives if step is route.steps[-1] else 0)
            await self._step(exchange, step, one, done, left, settings)
            left = [index for index in left if index not in done.errors]
        if key is not None:
            for index in left:
                self._recent.put((*key, job.texts[index]), done.texts[index] or "", settings.cache)
        return done

    async def _key(self, route: Route, job: Job) -> tuple[tuple[str, ...], str, str]:
        entries = [await self._names.reach(step.model, self._bring) for step in route.steps]
        return tuple(entry.spec.version for entry in entries), job.source, job.target

    async def _step(
        self,
        exchange: Exchange,
        step: Step,
        job: Job,
        done: Done,
        left: Sequence[int],
        settings: Translation,
    ) -> None:
        """Have those texts of `done` that are left translated by one model."""
        if done.route.kind is Kind.LLM:
            for index in left:
                try:
                    await self._told(exchange, step, job, done, index, settings)
                except (EngineProtocol, ContextOverflow) as error:
                    if not job.partial:
                        raise
                    done.texts[index], done.errors[index] = None, error.message
            return
        for start in range(0, len(left), TOGETHER):
            some = left[start : start + TOGETHER]
            fields: dict[str, object] = {
                "q": [done.texts[index] for index in some],
                "source": step.source,
                "target": step.target,
            }
            if job.alternatives:
                fields["alternatives"] = job.alternatives
            if job.partial:
                fields["partial"] = True
            answer = await self._ask(exchange, step, job, done, _Translate(fields))
            for place, index in enumerate(some):
                _take(answer, place, index, done)

    async def _told(
        self, exchange: Exchange, step: Step, job: Job, done: Done, index: int, settings: Translation
    ) -> None:
        """One text by a language model that is told to translate it."""
        told = settings.prompt.format(source=languages.name(step.source), target=languages.name(step.target))
        messages = [{"role": "system", "content": told}, {"role": "user", "content": done.texts[index]}]
        answer = await self._ask(exchange, step, job, done, _Chat(messages))
        done.texts[index] = str(choice_of(answer)["message"]["content"]).strip()

    async def _ask(
        self, exchange: Exchange, step: Step, job: Job, done: Done, question: _Translate | _Chat
    ) -> Mapping[str, Any]:
        """The answer of one model. Raises what it is refused with, and Disconnected."""
        inner, told, found = Inner(exchange), Told(), _Found(question.check)

        async def demand(_: Exchange) -> Demand:
            entry = await self._names.reach(step.model, self._bring)
            if question.path not in entry.paths:
                raise NotSupported(f"{entry.spec.model} does not serve {question.path}.", param="model")
            body = orjson.dumps(question.body(entry))
            return Demand(
                entry,
                KIND,
                question.path.encode(),
                body,
                False,
                priority=job.priority,
                reshape=found.read,
                api=told,
                key=exchange.caller.name,
            )

        await self._service.serve(inner, await demand(exchange), demand)
        exchange.also += inner.also
        if told.told is not None:
            raise told.told
        if found.answer is None:  # the client left, or the server stops
            raise Disconnected
        done.headers = [pair for pair in inner.answered if pair[0].startswith(OURS)]
        usage = found.answer.get("usage")
        if isinstance(usage, dict):
            for name in USAGE:
                counted = usage.get(name, usage.get(_AS_CHAT.get(name, "")))
                done.usage[name] += counted if isinstance(counted, int) else 0
        return found.answer


class _Translate:
    """A question to a model that translates."""

    path = TRANSLATE

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def body(self, entry: Entry) -> Mapping[str, object]:
        return entry.engine.translation(entry.spec, self._fields)

    def check(self, answer: Mapping[str, Any]) -> bool:
        texts, errors = answer.get("translatedText"), answer.get("errors", {})
        return (
            isinstance(texts, list)
            and len(texts) == len(self._fields["q"])
            and isinstance(errors, dict)
            and all(isinstance(text, str) or str(index) in errors for index, text in enumerate(texts))
        )


class _Chat:
    """A question to a language model."""

    path = CHAT

    def __init__(self, messages: Sequence[object]) -> None:
        self._messages = messages

    def body(self, entry: Entry) -> Mapping[str, object]:
        name = entry.engine.model_name(entry.spec) or entry.spec.model
        return {"model": name, "messages": self._messages, "temperature": 0}

    def check(self, answer: Mapping[str, Any]) -> bool:
        choice = choice_of(answer)
        message = choice.get("message")
        said = message.get("content") if isinstance(message, dict) else None
        return isinstance(said, str) and bool(said.strip()) and choice.get("finish_reason") != "length"


class _Found:
    """Reads an engine's answer, so that one that is none counts as its fault, and keeps it."""

    def __init__(self, check: Callable[[Mapping[str, Any]], bool]) -> None:
        self._check = check
        self.answer: Mapping[str, Any] | None = None

    def read(self, body: bytes) -> bytes:
        answer = object_of(body)
        if not self._check(answer):
            raise ProtocolError(f"it answered with {body[:80]!r}, which is no translation of what was sent")
        self.answer = answer
        return body


def _take(answer: Mapping[str, Any], place: int, index: int, done: Done) -> None:
    """One text of an answer."""
    if (problem := answer.get("errors", {}).get(str(place))) is not None:
        done.texts[index], done.errors[index] = None, str(problem)
        return
    done.texts[index] = answer["translatedText"][place]
    more = answer.get("alternatives")
    if isinstance(more, list) and place < len(more) and isinstance(more[place], list):
        done.alternatives[index] = [text for text in more[place] if isinstance(text, str)]
