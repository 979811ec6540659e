"""The HTTP API of our servers that translate: LibreTranslate's `/translate` and `/languages`, and our fields.

Called by `plain_http` with one Exchange per request. Texts are cut into segments, and those of all requests
go through the model together (`batching`). A client that leaves has its segments left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

from modelyard.languages import name
from modelyard.servers.plain_http import Exchange, Gone
from modelyard.servers.translation.asks import Ask, Refused, Served, ask
from modelyard.servers.translation.backends import Backend, OutOfMemory, Output
from modelyard.servers.translation.batching import MOST_WAITING, Batching, Full
from modelyard.servers.translation.texts import Plan, planned

_AT_ONCE = 4000  # characters of a request that are tokenized beside the others' answers


class Api:
    """One server. `model` is None while it loads; `batching` makes what runs it."""

    def __init__(self, batching: Callable[[Backend], Batching]) -> None:
        self._batching = batching
        self._model: Model | None = None
        self._requests = self._processing = 0

    @property
    def model(self) -> Backend | None:
        return None if self._model is None else self._model.backend

    @model.setter
    def model(self, backend: Backend | None) -> None:
        if backend is not None:
            self._model = Model(backend, self._batching(backend), Served(backend.languages, backend.pairs))

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        try:
            route = _ROUTES.get((exchange.request.method, exchange.request.path))
            if route is None:
                message = f"there is no {exchange.request.method} {exchange.request.path}"
                raise Refused(404, "not_found", message)
            if self._model is None:
                raise Refused(503, "unavailable", "Loading model")
            await route(self, exchange, self._model)
        except Refused as error:
            exchange.answer(error.status, error.body)
        except Gone:
            return

    async def _translate(self, exchange: Exchange, model: Model) -> None:
        self._requests += 1
        self._processing += 1
        try:
            await self._answered(exchange, model)
        finally:
            self._processing -= 1

    async def _answered(self, exchange: Exchange, model: Model) -> None:
        asked = ask(exchange.request.body, model.served)
        try:
            answer = await exchange.awaited(_translated(asked, model))
        except Full:
            raise Refused(429, "overloaded", "too many texts wait here; try again later") from None
        exchange.answer(200, answer)

    async def _languages(self, exchange: Exchange, model: Model) -> None:
        targets: dict[str, list[str]] = {}
        for source, target in model.backend.pairs:
            targets.setdefault(source, []).append(target)
        rows = [{"code": code, "name": name(code), "targets": found} for code, found in targets.items()]
        exchange.answer(200, rows)

    async def _health(self, exchange: Exchange, model: Model) -> None:
        exchange.answer(200, {"status": "ok"})

    async def _stats(self, exchange: Exchange, model: Model) -> None:
        batching = model.batching
        own = {"requests": self._requests, "processing": self._processing, "waiting": batching.waiting}
        counts = {"batch": batching.running, **asdict(batching.counts), "batch_tokens": batching.bound}
        exchange.answer(200, {**own, **counts})


@dataclass(frozen=True)
class Model:
    backend: Backend
    batching: Batching
    served: Served


async def _translated(asked: Ask, model: Model) -> dict[str, object]:
    """The answer to a request. Raises Refused, Full."""
    if sum(map(len, asked.texts)) > _AT_ONCE:
        plans = await asyncio.to_thread(_planned, asked, model.backend)
    else:
        plans = _planned(asked, model.backend)
    segments = [segment for plan in plans for segment in plan.segments]
    if len(segments) > MOST_WAITING:  # there would never be room for it
        message = f"the texts are {len(segments):,} sentences; {MOST_WAITING:,} are the most in one request"
        raise Refused(413, "too_long", message, "q")
    outputs = iter(await model.batching.translate(segments, asked.alternatives))
    texts, others, errors, made = [], [], dict(asked.errors), 0
    for place, plan in enumerate(plans):
        said = [next(outputs) for _ in plan.segments]
        if failed := next((one for one in said if isinstance(one, Exception)), None):
            _refuse_unless(asked.partial, place, failed)
            errors[place] = _why(failed)
            said = []
        good = [one for one in said if isinstance(one, Output)]
        made += sum(one.tokens for one in good)
        lost = place in errors
        texts.append("" if lost else plan.joined([one.text for one in good]))
        others.append([] if lost else [*_alternatives(plan, good, asked.alternatives)])
    usage = {"segments": len(segments), "input_tokens": sum(map(len, segments)), "output_tokens": made}
    answer: dict[str, object] = {"translatedText": texts[0] if asked.single else texts, "usage": usage}
    if asked.alternatives:
        answer["alternatives"] = others[0] if asked.single else others
    if errors:
        answer["errors"] = {str(place): why for place, why in sorted(errors.items())}
    return answer


def _planned(asked: Ask, backend: Backend) -> list[Plan]:
    return [planned(backend, text, asked.source, asked.target) for text in asked.texts]


def _alternatives(plan: Plan, outputs: Sequence[Output], count: int) -> Iterator[str]:
    """The next best translations of a text: of each of its segments the next best one."""
    for rank in range(count):
        if any(len(one.alternatives) > rank for one in outputs):
            found = [one.alternatives[rank] if len(one.alternatives) > rank else one.text for one in outputs]
            yield plan.joined(found)


def _refuse_unless(partial: bool, place: int, error: Exception) -> None:
    if partial:
        return
    if isinstance(error, ValueError):
        raise Refused(400, "invalid_request", f"q[{place}]: {_why(error)}", "q") from None
    code = "out_of_memory" if isinstance(error, OutOfMemory) else "engine_failed"
    raise Refused(500, code, f"q[{place}]: {_why(error)}") from None


def _why(error: Exception) -> str:
    if isinstance(error, OutOfMemory):
        return "out of memory: a sentence of it is too long for what is free"
    return f"{type(error).__name__}: {error}"


_Route: TypeAlias = Callable[[Api, Exchange, Model], Awaitable[None]]
_ROUTES: dict[tuple[str, str], _Route] = {
    ("POST", "/translate"): Api._translate,
    ("GET", "/languages"): Api._languages,
    ("GET", "/health"): Api._health,
    ("GET", "/stats"): Api._stats,
}
