"""The HTTP API: OpenAI's, `/tokenize` and `/detokenize`, and `/sleep`, `/wake` and `/stats` for who runs it.

Called by `plain_http` with one Exchange per request. At most `slots` requests are computed at a time, the
others wait in their order. A client that leaves has its generation broken off at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from modelyard.servers.plain_http import Exchange, Gone
from modelyard.servers.transformers import asks
from modelyard.servers.transformers.answer import Answer
from modelyard.servers.transformers.asks import ApiError, Ask
from modelyard.servers.transformers.generation import Failed, Generator, Job, Model
from modelyard.servers.transformers.parameters import Parameters

Handle: TypeAlias = Callable[["Api", Exchange, Model], Awaitable[None]]


class Api:
    """One server. `model` is None while it loads; `failed` is called when it can serve no more."""

    def __init__(self, parameters: Parameters, failed: Callable[[str], None]) -> None:
        self.model: Model | None = None
        self._parameters = parameters
        self._failed = failed
        self._slots = asyncio.Semaphore(parameters.slots)
        self._processing = self._waiting = self._requests = 0
        self._asleep = False
        self._turning = asyncio.Lock()

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        try:
            await self._route(exchange)
        except ApiError as error:
            exchange.answer(error.status, error.body)
        except Gone:
            return

    async def _route(self, exchange: Exchange) -> None:
        key = (exchange.request.method, exchange.request.path)
        awake, loaded = _AWAKE.get(key), _LOADED.get(key)
        if self.model is None:
            raise ApiError(503, "unavailable_error", "Loading model")
        if loaded is not None:
            await loaded(self, exchange, self.model)
        elif awake is None:
            raise ApiError(404, "not_found_error", f"there is no {' '.join(key)}")
        else:
            self._check_awake()
            await awake(self, exchange, self.model)

    def _check_awake(self) -> None:
        if self._asleep or self._turning.locked():
            raise ApiError(503, "unavailable_error", "the model is asleep")

    # -- generations ------------------------------------------------------------------------------------

    async def _chat(self, exchange: Exchange, model: Model) -> None:
        if model.generator is not None and not model.words.chats:
            message = "this model has no chat template: ask for completions instead"
            raise ApiError(501, "not_supported_error", message)
        await self._generation(exchange, model, chat=True)

    async def _completion(self, exchange: Exchange, model: Model) -> None:
        await self._generation(exchange, model, chat=False)

    async def _generation(self, exchange: Exchange, model: Model, chat: bool) -> None:
        if model.generator is None:
            raise _cannot("generate text")
        ask = asks.generation(asks.body_of(exchange.request.body), chat, model.words.defaults)
        prompt = self._checked(await asyncio.to_thread(_tokens, model, ask), model)
        room = self._parameters.context - len(prompt)
        job = Job(
            prompt,
            min(ask.limit or room, room),
            frozenset() if ask.ignore_end else model.words.ends,
            ask.sampling,
        )
        async with self._slot(exchange):
            answer = Answer(self._parameters.model, ask, job, model.words)
            try:
                await answer.send(exchange, self._pieces(model.generator, job, exchange))
            except Failed as error:
                if error.fatal:
                    self._failed(str(error))
                if not answer.begun:
                    raise ApiError(500, "server_error", str(error)) from None
                await answer.break_off(exchange, str(error))

    def _checked(self, tokens: Sequence[int], model: Model) -> Sequence[int]:
        return asks.checked(tokens, self._parameters.context, model.words.vocabulary)

    async def _pieces(self, generator: Generator, job: Job, exchange: Exchange) -> AsyncGenerator[int]:
        """The tokens of a job. When this is closed before their end, the job is broken off, and has stopped.
        Raises Gone, Failed."""
        ended = False
        exchange.when_gone(lambda: job.said.put_nowait(Gone()))
        generator.start(job)
        try:
            while (said := await job.said.get()) is not None:
                if isinstance(said, Exception):
                    ended = isinstance(said, Failed)
                    raise said
                for token in said:
                    yield token
            ended = True
        finally:
            if not ended:
                generator.cancel(job)
                while not (isinstance(last := await job.said.get(), Failed) or last is None):
                    pass

    @asynccontextmanager
    async def _slot(self, exchange: Exchange) -> AsyncIterator[None]:
        """A slot, for the time of one request. Raises Gone when nobody waits for the answer any more, and
        ApiError where the model fell asleep while the request was read."""
        self._check_awake()
        self._waiting += 1
        self._requests += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._processing += 1
        try:
            if exchange.gone:
                raise Gone
            yield
        finally:
            self._processing -= 1
            self._slots.release()

    # -- everything else --------------------------------------------------------------------------------

    async def _embeddings(self, exchange: Exchange, model: Model) -> None:
        if model.embedder is None:
            raise _cannot("embed")
        given = asks.inputs(asks.body_of(exchange.request.body))
        tokens = await asyncio.to_thread(_all_encoded, model, given)
        for one in tokens:
            self._checked(one, model)
        async with self._slot(exchange):
            try:
                vectors = await exchange.awaited(model.embedder.embed(tokens))
            except Failed as error:
                raise ApiError(500, "server_error", str(error)) from None
        data = [{"object": "embedding", "index": i, "embedding": one} for i, one in enumerate(vectors)]
        counted = sum(map(len, tokens))
        usage = {"prompt_tokens": counted, "total_tokens": counted}
        body = {"object": "list", "model": self._parameters.model, "data": data, "usage": usage}
        exchange.answer(200, body)

    async def _tokenize(self, exchange: Exchange, model: Model) -> None:
        content = asks.body_of(exchange.request.body).get("content")
        if not isinstance(content, str):
            raise asks.invalid("`content` must be a text", "content")
        exchange.answer(200, {"tokens": await asyncio.to_thread(_encoded, model, content, special=False)})

    async def _detokenize(self, exchange: Exchange, model: Model) -> None:
        tokens = asks.prompt(asks.body_of(exchange.request.body), "tokens")
        if isinstance(tokens, str):
            raise asks.invalid("`tokens` must be a list of tokens", "tokens")
        try:
            content = await asyncio.to_thread(model.words.decode, tokens, special=True)
        except (ValueError, OverflowError, IndexError) as error:
            message = f"`tokens` holds one that the model does not have: {error}"
            raise asks.invalid(message, "tokens") from None
        exchange.answer(200, {"content": content})

    async def _health(self, exchange: Exchange, model: Model) -> None:
        asleep = self._asleep or self._turning.locked()
        exchange.answer(503 if asleep else 200, {"status": "asleep" if asleep else "ok"})

    async def _models(self, exchange: Exchange, model: Model) -> None:
        entry = {"id": self._parameters.model, "object": "model", "created": 0, "owned_by": "transformers"}
        exchange.answer(200, {"object": "list", "data": [entry]})

    async def _stats(self, exchange: Exchange, model: Model) -> None:
        works = model.generator or model.embedder
        counts = works.counts() if works is not None and not self._asleep else {}
        own = {"processing": self._processing, "waiting": self._waiting, "requests": self._requests}
        exchange.answer(200, {**own, "asleep": self._asleep, **counts})

    # -- sleep ------------------------------------------------------------------------------------------

    async def _sleep(self, exchange: Exchange, model: Model) -> None:
        if not model.sleeper.level:
            raise ApiError(501, "not_supported_error", "its weights cannot leave their place here")
        if self._processing or self._waiting or self._turning.locked():
            raise ApiError(409, "conflict_error", "it is at work: it sleeps once its requests have ended")
        async with self._turning:
            size, seconds = (0, 0.0) if self._asleep else await asyncio.to_thread(_put_to_sleep, model)
            self._asleep = True
        exchange.answer(200, {"level": model.sleeper.level, "bytes": size, "seconds": seconds})

    async def _wake(self, exchange: Exchange, model: Model) -> None:
        async with self._turning:
            size, seconds = await asyncio.to_thread(_wake_up, model) if self._asleep else (0, 0.0)
            self._asleep = False
        exchange.answer(200, {"bytes": size, "seconds": seconds})


def _put_to_sleep(model: Model) -> tuple[int, float]:
    if model.generator is not None:
        model.generator.close()
    try:
        return model.sleeper.sleep()
    except (OSError, RuntimeError) as error:  # no room on the disk; none in memory that a GPU can reach
        if model.generator is not None:
            model.generator.open()
        raise ApiError(507, "server_error", f"its weights have no place to go: {error}") from None


def _wake_up(model: Model) -> tuple[int, float]:
    try:
        moved = model.sleeper.wake()
        if model.generator is not None:
            model.generator.open()
    except (OSError, RuntimeError) as error:
        raise ApiError(500, "server_error", f"it does not wake: {error}") from None
    return moved


def _tokens(model: Model, ask: Ask) -> list[int]:
    if not ask.chat:
        return _encoded(model, ask.prompt)  # type: ignore[arg-type]
    try:
        return model.words.chat(ask.prompt, ask.template)  # type: ignore[arg-type]
    except ValueError as error:
        raise ApiError(400, "invalid_request_error", str(error)) from None


def _all_encoded(model: Model, given: Sequence[str | list[int]]) -> list[list[int]]:
    return [_encoded(model, one) for one in given]


def _encoded(model: Model, given: str | Sequence[int], special: bool = True) -> list[int]:
    try:
        return model.words.encode(given, special) if isinstance(given, str) else list(given)
    except ValueError as error:
        raise ApiError(400, "invalid_request_error", str(error)) from None


def _cannot(what: str) -> ApiError:
    return ApiError(501, "not_supported_error", f"this model does not {what}")


_LOADED: dict[tuple[str, str], Handle] = {
    ("GET", "/health"): Api._health,
    ("GET", "/v1/models"): Api._models,
    ("GET", "/stats"): Api._stats,
    ("POST", "/sleep"): Api._sleep,
    ("POST", "/wake"): Api._wake,
    ("POST", "/tokenize"): Api._tokenize,
    ("POST", "/detokenize"): Api._detokenize,
}
_AWAKE: dict[tuple[str, str], Handle] = {
    ("POST", "/v1/chat/completions"): Api._chat,
    ("POST", "/v1/completions"): Api._completion,
    ("POST", "/v1/embeddings"): Api._embeddings,
}
