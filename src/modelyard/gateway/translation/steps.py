"""One step of a translation: texts that one model is asked for, in as many requests as that takes.

Called by `translating`. The requests go through the serve loop as those of clients do (`inner`): a few at a
time, and all of them within the time that one may take. What a language model has no room for goes to it in
parts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import orjson

from modelyard import languages
from modelyard.config import Translation
from modelyard.core.routing import Kind, Route, Step
from modelyard.core.types import Priority
from modelyard.engines.base import TRANSLATE
from modelyard.engines.openai_http import CHAT
from modelyard.errors import (
    ContextOverflow,
    EngineProtocol,
    ModelyardError,
    NotSupported,
    NotTranslated,
    RequestDeadline,
)
from modelyard.gateway.chunks import choice_of, object_of, part_of
from modelyard.gateway.demand import Demand
from modelyard.gateway.exchange import Disconnected, Exchange
from modelyard.gateway.inner import Inner, Told
from modelyard.gateway.names import Bring, Names
from modelyard.gateway.serve import REQUEST_HEADER, Service
from modelyard.runtime.entries import Entry
from modelyard.wire.errors import ProtocolError

KIND = "translation"
OURS = b"x-modelyard-"
TOGETHER = 256  # texts of one request to an engine
AT_ONCE = 4  # requests of one step
USAGE = ("segments", "input_tokens", "output_tokens")
_AS_CHAT = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
_SHORTEST = 40  # characters of a text that is cut in two
# Where a text may be cut, the better place first: behind a line or sentence; between words.
_ENDS = (re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*|(?<!\s)\s*?\n\s*"), re.compile(r"\s+"))  # noqa: RUF001
_SHOWN = 8  # requests whose names the answer tells


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
    `partial` all are there. `headers` are those of the last answer that says how it came about. `waited`:
    seconds in queues, along this route and those that were tried before."""

    texts: list[str | None]
    route: Route
    alternatives: dict[int, list[str]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=lambda: dict.fromkeys(USAGE, 0))
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    waited: float = 0.0


class Steps:
    """What steps are made with. `bring` has a registered version served; it raises ModelNotFound."""

    def __init__(self, service: Service, names: Names, bring: Bring) -> None:
        self.service = service
        self.names = names
        self.bring = bring

    async def take(
        self,
        exchange: Exchange,
        step: Step,
        job: Job,
        done: Done,
        left: Sequence[int],
        settings: Translation,
    ) -> None:
        """Have those texts of `done` that are left translated by one model. Raises what the first is refused
        with, RequestDeadline and Disconnected."""
        taken = _Step(self, exchange, step, job, done, settings)
        if done.route.kind is Kind.LLM:
            asks = [partial(taken.tell, index) for index in left]
        else:
            each = range(0, len(left), TOGETHER)
            asks = [partial(taken.translate, left[start : start + TOGETHER]) for start in each]
        if asks:
            await taken.run(asks)


class _Step:
    """`too_long`: so many characters were too many for the language model once. `timer`: the end of the time
    that all requests have; it runs once the first was answered."""

    def __init__(
        self, made: Steps, exchange: Exchange, step: Step, job: Job, done: Done, settings: Translation
    ) -> None:
        self._made = made
        self._exchange = exchange
        self._step = step
        self._job = job
        self._done = done
        self._settings = settings
        self._too_long: float = inf
        self._waited = done.waited
        self._asked: set[Inner] = set()
        self._failed: ModelyardError | Disconnected | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, asks: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """The first alone, for whose model it is to be loaded; then the others, as long as none fails."""
        self._exchange.on_close(partial(self._fail, Disconnected()))
        rest = iter(asks[1:])
        try:
            await asks[0]()
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, len(asks) - 1)):
                    group.create_task(self._ask_each(rest))
        finally:
            if self._timer is not None:
                self._timer.cancel()
        if self._failed is not None:
            raise self._failed

    async def _ask_each(self, asks: Iterator[Callable[[], Awaitable[None]]]) -> None:
        for ask in asks:
            if self._failed is not None:
                return
            try:
                await ask()
            except (ModelyardError, Disconnected) as error:
                self._fail(error)

    def _fail(self, error: ModelyardError | Disconnected) -> None:
        """Nobody wants the others any more; the first reason counts."""
        self._failed = self._failed or error
        for inner in self._asked:
            inner.leave()

    async def _entry(self) -> Entry:
        return await self._made.names.reach(self._step.model, self._made.bring)

    # -- a model that translates --------------------------------------------------------------------------

    async def translate(self, some: Sequence[int]) -> None:
        job, done = self._job, self._done
        fields: dict[str, object] = {
            "q": [done.texts[index] for index in some],
            "source": self._step.source,
            "target": self._step.target,
        }
        if job.alternatives:
            fields["alternatives"] = job.alternatives
        if job.partial:
            fields["partial"] = True
        answer = await self._ask(_Translate(fields))
        for place, index in enumerate(some):
            _take(answer, place, index, done)

    # -- a language model that is told to -----------------------------------------------------------------

    async def tell(self, index: int) -> None:
        text = self._done.texts[index]
        assert text is not None
        try:
            self._done.texts[index] = await self._told(text)
        except (NotTranslated, ContextOverflow, EngineProtocol) as error:
            if not self._job.partial:
                raise
            self._done.texts[index], self._done.errors[index] = None, error.message

    async def _told(self, text: str) -> str:
        """The translation of a text, in parts where it is too long for the model. Raises ContextOverflow for
        one that cannot be cut."""
        parts = halves(text)
        if len(text) < self._too_long or not parts:
            names = [languages.name(code) for code in (self._step.source, self._step.target)]
            told = self._settings.prompt.format(source=names[0], target=names[1])
            messages = [{"role": "system", "content": told}, {"role": "user", "content": text}]
            try:
                return str(choice_of(await self._ask(_Chat(messages)))["message"]["content"]).strip()
            except ContextOverflow:
                if not parts:
                    raise
                self._too_long = min(self._too_long, len(text))
        before, between, after = parts
        return await self._told(before) + between + await self._told(after)

    # -- one request --------------------------------------------------------------------------------------

    async def _ask(self, question: _Translate | _Chat) -> Mapping[str, Any]:
        """The answer of one model. Raises what it is refused with, and Disconnected."""
        exchange, done = self._exchange, self._done
        inner, told, found = Inner(exchange), Told(), _Found(question.check)

        async def demand(_: Exchange) -> Demand:
            entry = await self._entry()
            if question.path not in entry.paths:
                raise NotSupported(f"{entry.spec.model} does not serve {question.path}.", param="model")
            body = orjson.dumps(question.body(entry))
            return Demand(
                entry,
                KIND,
                question.path.encode(),
                body,
                False,
                priority=self._job.priority,
                reshape=found.read,
                api=told,
                key=exchange.caller.name,
                waited=self._waited,
            )

        self._asked.add(inner)
        began = asyncio.get_running_loop().time()
        try:
            asked = await demand(exchange)
            await self._made.service.serve(inner, asked, demand)
        finally:
            self._asked.discard(inner)
        done.waited = max(done.waited, asked.waited)
        if self._timer is None:
            self._limit(asked.entry, began + asked.waited - self._waited)
        if self._failed is not None:
            raise self._failed
        if exchange.also.count(REQUEST_HEADER) < _SHOWN:
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

    def _limit(self, entry: Entry, since: float) -> None:
        """All requests have the time of one, from when the first of them had its slot; or was refused."""
        timeout = entry.policy.request_timeout
        over = RequestDeadline(
            f"{entry.spec.model} did not finish what this request asks of it within request_timeout "
            f"{timeout:g} s: it takes several requests; send less at once"
        )
        self._timer = asyncio.get_running_loop().call_at(since + timeout, self._fail, over)


def halves(text: str) -> tuple[str, str, str] | tuple[()]:
    """A text that begins and ends with none of it in two, and the white space between them: behind a sentence
    about its middle, else between two words. Nothing where it is short, or one word."""
    middle = len(text) / 2
    for ends, most in zip(_ENDS, (middle / 2, middle), strict=True):
        found = [end for end in ends.finditer(text) if end.start() > 0 and end.end() < len(text)]
        best = min(found, key=lambda end: abs(end.start() - middle), default=None)
        if len(text) >= _SHORTEST and best is not None and abs(best.start() - middle) <= most:
            return text[: best.start()], best[0], text[best.end() :]
    return ()


class _Translate:
    """A question to a model that translates."""

    path = TRANSLATE

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def body(self, entry: Entry) -> Mapping[str, object]:
        return entry.engine.translation(entry.spec, self._fields)

    def check(self, answer: Mapping[str, Any]) -> None:
        texts, errors = answer.get("translatedText"), answer.get("errors", {})
        if not (
            isinstance(texts, list)
            and len(texts) == len(self._fields["q"])
            and isinstance(errors, dict)
            and all(isinstance(text, str) or str(index) in errors for index, text in enumerate(texts))
        ):
            raise ProtocolError(
                f"it answered with {str(answer)[:80]}, which is no translation of what was sent"
            )


class _Chat:
    """A question to a language model."""

    path = CHAT

    def __init__(self, messages: Sequence[object]) -> None:
        self._messages = messages

    def body(self, entry: Entry) -> Mapping[str, object]:
        name = entry.engine.model_name(entry.spec) or entry.spec.model
        return {"model": name, "messages": self._messages, "temperature": 0}

    def check(self, answer: Mapping[str, Any]) -> None:
        choice = choice_of(answer)
        said = part_of(choice, "message").get("content", "")
        if not choice or not isinstance(said, str | None):
            raise ProtocolError(f"it answered with {str(answer)[:80]}, which is no chat's answer")
        # What follows is the model's doing, not its engine's.
        if choice.get("finish_reason") == "length":
            raise ContextOverflow("The translation of the text does not fit the language model's answer.")
        if not said or not said.strip():
            raise NotTranslated("The language model that was asked to translate the text said nothing.")


class _Found:
    """Reads an engine's answer, so that one that is none counts as its fault, and keeps it. `check` raises
    ProtocolError for that, other errors for what is not the engine's."""

    def __init__(self, check: Callable[[Mapping[str, Any]], None]) -> None:
        self._check = check
        self.answer: Mapping[str, Any] | None = None

    def read(self, body: bytes) -> bytes:
        answer = object_of(body)
        self._check(answer)
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
