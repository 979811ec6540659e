"""The fake engine's HTTP API, in llama.cpp's shapes: slots, generations, and the failures that are ordered.

Called by `servers.fake` with one Exchange per request. A generation whose client has gone stops at its next
token, and only then gives its slot back; one that hangs keeps it for ever, as a hung engine does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from random import Random

from modelyard.servers import fake_memory, fake_text, fake_translation
from modelyard.servers.fake_generation import Generation, crash
from modelyard.servers.fake_script import DEAD, Order, Script, order_from
from modelyard.servers.plain_http import Exchange, Gone

_MAX_TOKENS = 1_000_000
_DEAD_FOR = 0.2  # seconds that its server outlives it


class ApiError(Exception):
    """An answer in llama.cpp's error shape."""

    def __init__(self, status: int, kind: str, message: str, **fields: int) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": status, "message": message, "type": kind, **fields}}


class Api:
    """The state of one fake engine: whether it is loaded, its slots, its counters."""

    def __init__(self, model: str, script: Script, random: Random, held: fake_memory.Held) -> None:
        self.loaded = False
        self._held = held
        self._asleep = self._dead = False
        self._woken = 0  # how many generations there were before it woke
        self._model = model
        self._script = script
        self._random = random
        self._busy: list[bool] = [False] * script.slots
        self._slots = asyncio.Semaphore(script.slots)
        self._deferred = 0
        self._requests = 0
        self._prompt_tokens = 0
        self._generated = 0
        self._prompt_seconds = 0.0
        self._seconds = 0.0

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        try:
            await self._route(exchange)
        except ApiError as error:
            exchange.answer(error.status, error.body)
        except Gone:
            return

    async def _route(self, exchange: Exchange) -> None:
        request = exchange.request
        key = (request.method, request.path)
        if key == ("GET", "/health"):
            await asyncio.sleep(self._script.slow_health)
        if not self.loaded:
            body = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
            exchange.answer(503, {"status": "loading model", "error": body})
        elif self._dead:
            raise ApiError(500, "server_error", DEAD)
        elif key in _PLAIN:
            _PLAIN[key](self, exchange)
        elif key in _TIERS and self._script.asleep:
            await _TIERS[key](self, exchange)
        elif self._asleep:
            raise ApiError(503, "unavailable_error", "it sleeps")
        elif key in _GENERATIONS:
            api, chat = _GENERATIONS[key]
            await self._generate(exchange, self._body(exchange, api), chat)
        elif key in _COMPUTATIONS:
            api, compute = _COMPUTATIONS[key]
            given = self._body(exchange, api)
            order = _order(given)
            async with self._slot(exchange):
                await self._misbehave(order)
                answer = compute(self, given)
                await asyncio.sleep(fake_translation.seconds(answer, self._script))
                exchange.answer(200, answer)
        else:
            raise ApiError(404, "not_found_error", "File Not Found")

    def _body(self, exchange: Exchange, api: str) -> Mapping[str, object]:
        if api not in self._script.apis:
            message = f"This server does not support {api}. Start it with `--apis {api}`"
            raise ApiError(501, "not_supported_error", message)
        try:
            body = json.loads(exchange.request.body)
        except ValueError as error:
            raise ApiError(400, "invalid_request_error", f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise ApiError(400, "invalid_request_error", "the body must be an object")
        return body

    # -- sleep ------------------------------------------------------------------------------------------

    async def _sleep(self, exchange: Exchange) -> None:
        if self._script.refuse_sleep or any(self._busy):
            raise ApiError(409, "conflict_error", "it does not sleep now")
        if self._script.hang_at_sleep:
            await asyncio.Event().wait()
        if not self._script.keep_at_sleep:
            await asyncio.to_thread(
                fake_memory.take_instead, self._script.asleep, fake_memory.pools(), self._held
            )
        self._asleep = True
        exchange.answer(200, {"asleep": True})

    async def _wake(self, exchange: Exchange) -> None:
        if self._script.refuse_wake:
            raise ApiError(500, "server_error", "it does not wake")
        try:
            await asyncio.to_thread(
                fake_memory.take_instead, self._script.memory, fake_memory.pools(), self._held
            )
        except fake_memory.OutOfMemory as error:
            raise ApiError(500, "server_error", f"out of memory ({error})") from None
        await asyncio.sleep(self._script.wake_time)
        self._asleep, self._woken = False, self._requests
        exchange.answer(200, {"asleep": False})

    # -- generations ------------------------------------------------------------------------------------

    async def _generate(self, exchange: Exchange, body: Mapping[str, object], chat: bool) -> None:
        order = _order(body)
        prompt = _chat_prompt(body) if chat else _text(body, "prompt")
        counted = len(fake_text.token_ids(prompt))
        context = self._script.context
        if context and counted >= context:
            message = (
                f"request ({counted} tokens) exceeds the available context size ({context} tokens), "
                "try increasing it"
            )
            raise ApiError(400, "exceed_context_size_error", message, n_prompt_tokens=counted, n_ctx=context)
        asked = order.tokens or _limit(body)
        room = context - counted if context else _MAX_TOKENS
        calls = self._script.tool_calls if chat and _may_call(body) else ()
        usual = _MAX_TOKENS if calls else self._script.default_tokens
        generation = Generation(
            model=self._model,
            prompt=prompt,
            prompt_tokens=counted,
            limit=min(usual if asked is None else asked, room),
            cut=asked is not None or usual > room,
            chat=chat,
            usage=_wants_usage(body),
            script=_overruled(self._script, order),
            thinking=self._script.thinking_tokens if chat and _may_think(body) else 0,
            calls=calls,
        )
        async with self._slot(exchange):
            await self._misbehave(order)
            if self._requests == self._script.dead_on_request:
                await self._die(exchange, bool(body.get("stream")))
                return
            start = time.monotonic()
            await asyncio.sleep(order.delay + self._script.first_token_time)
            self._prompt_tokens += counted
            self._prompt_seconds += time.monotonic() - start
            start = time.monotonic()
            send = generation.stream if body.get("stream") else generation.whole
            await send(exchange)
            self._generated += generation.generated
            self._seconds += time.monotonic() - start

    async def _misbehave(self, order: Order) -> None:
        """What goes wrong before the first byte of an answer."""
        script = self._script
        self._requests += 1
        if order.crash or self._random.random() < script.crash_rate:
            crash("crash on order")
        hang_from = script.hang_from_request
        if (
            order.hang
            or script.health_ok_but_requests_hang
            or self._requests == script.hang_on_request
            or 0 < hang_from <= self._requests
            or (script.hang_after_wake and 0 < self._woken < self._requests - 1)
        ):
            await asyncio.Event().wait()
        if order.status:
            raise ApiError(order.status, "server_error", "failure on order")
        if self._random.random() < script.fail_rate:
            raise ApiError(500, "server_error", "random failure")

    async def _die(self, exchange: Exchange, stream: bool) -> None:
        self._dead = True
        asyncio.get_running_loop().call_later(_DEAD_FOR, crash, DEAD)
        error = ApiError(500, "server_error", DEAD)
        if not stream:
            raise error
        exchange.begin(200, "text/event-stream")
        await exchange.write(b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(error.body).encode())
        exchange.end()

    def _slot(self, exchange: Exchange) -> _Slot:
        return _Slot(self, exchange)

    async def take_slot(self, exchange: Exchange) -> int:
        """Wait for a free slot; its number. Raises Gone when nobody waits for the answer any more."""
        self._deferred += 1
        try:
            await self._slots.acquire()
        finally:
            self._deferred -= 1
        if exchange.gone:
            self._slots.release()
            raise Gone
        number = self._busy.index(False)
        self._busy[number] = True
        return number

    def free_slot(self, number: int) -> None:
        """Give a slot back."""
        self._busy[number] = False
        self._slots.release()

    # -- everything else --------------------------------------------------------------------------------

    def _health(self, exchange: Exchange) -> None:
        exchange.answer(200, {"status": "ok"})

    def _models(self, exchange: Exchange) -> None:
        model = {"id": self._model, "object": "model", "created": 0, "owned_by": "fake"}
        exchange.answer(200, {"object": "list", "data": [model]})

    def _list_slots(self, exchange: Exchange) -> None:
        n_ctx = self._script.context
        slots = [{"id": i, "n_ctx": n_ctx, "is_processing": busy} for i, busy in enumerate(self._busy)]
        exchange.answer(200, slots)

    def _metrics(self, exchange: Exchange) -> None:
        values = {
            "prompt_tokens_total": self._prompt_tokens,
            "prompt_seconds_total": self._prompt_seconds,
            "tokens_predicted_total": self._generated,
            "tokens_predicted_seconds_total": self._seconds,
            "requests_processing": sum(self._busy),
            "requests_deferred": self._deferred,
            "n_busy_slots_per_decode": sum(self._busy),
        }
        lines = [
            f"# TYPE llamacpp:{name} {'counter' if name.endswith('_total') else 'gauge'}\n"
            f"llamacpp:{name} {value}\n"
            for name, value in values.items()
        ]
        exchange.answer(200, "".join(lines).encode(), "text/plain; version=0.0.4")

    def _embeddings(self, body: Mapping[str, object]) -> object:
        given = body.get("input")
        texts = [str(text) for text in given] if isinstance(given, list) else [_text(body, "input")]
        counted = sum(len(fake_text.token_ids(text)) for text in texts)
        data = [
            {"object": "embedding", "index": i, "embedding": fake_text.embedding(self._model, text)}
            for i, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": counted, "total_tokens": counted}
        return {"object": "list", "model": self._model, "data": data, "usage": usage}

    def _rerank(self, body: Mapping[str, object]) -> object:
        query, documents = _text(body, "query"), body.get("documents")
        if not isinstance(documents, list) or not documents:
            raise ApiError(400, "invalid_request_error", '"documents" must be a non-empty string array')
        scores = [fake_text.relevance(self._model, query, str(document)) for document in documents]
        results = [{"index": i, "relevance_score": score} for i, score in enumerate(scores)]
        results.sort(key=lambda result: -result["relevance_score"])
        counted = sum(len(fake_text.token_ids(str(text))) for text in [query, *documents])
        usage = {"prompt_tokens": counted, "total_tokens": counted}
        return {"object": "list", "model": self._model, "results": results, "usage": usage}

    def _tokenize(self, body: Mapping[str, object]) -> object:
        return {"tokens": fake_text.token_ids(_text(body, "content"))}

    def _detokenize(self, body: Mapping[str, object]) -> object:
        ids = body.get("tokens")
        try:
            return {"content": fake_text.text_of(ids if isinstance(ids, list) else [])}
        except ValueError as error:
            raise ApiError(400, "invalid_request_error", str(error)) from None

    def _translate(self, body: Mapping[str, object]) -> object:
        try:
            return fake_translation.translated(body, self._script.pairs, self._script.refused_text)
        except ValueError as error:
            raise ApiError(400, "invalid_request_error", str(error)) from None

    def _languages(self, exchange: Exchange) -> None:
        exchange.answer(200, fake_translation.languages(self._script.pairs))


class _Slot:
    """One slot of the engine, for the time of one request."""

    def __init__(self, api: Api, exchange: Exchange) -> None:
        self._api = api
        self._exchange = exchange
        self._number = 0

    async def __aenter__(self) -> None:
        self._number = await self._api.take_slot(self._exchange)

    async def __aexit__(self, *_: object) -> None:
        self._api.free_slot(self._number)


def _order(body: Mapping[str, object]) -> Order:
    try:
        return order_from(body.get("fake", {}))
    except ValueError as error:
        raise ApiError(400, "invalid_request_error", str(error)) from None


def _overruled(script: Script, order: Order) -> Script:
    return replace(
        script,
        tokens_per_second=order.tokens_per_second or script.tokens_per_second,
        crash_after_tokens=order.crash_after_tokens or script.crash_after_tokens,
        crash_mid_event=order.crash_mid_event or script.crash_mid_event,
        hang_after_tokens=order.hang_after_tokens or script.hang_after_tokens,
    )


def _text(body: Mapping[str, object], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise ApiError(400, "invalid_request_error", f'"{name}" must be a string')
    return value


def _chat_prompt(body: Mapping[str, object]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ApiError(400, "invalid_request_error", '"messages" must be a non-empty array of objects')
    return fake_text.chat_prompt(messages)


def _may_call(body: Mapping[str, object]) -> bool:
    """Tools are offered, and the last word is not one's result."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) else {}
    return bool(body.get("tools")) and body.get("tool_choice") != "none" and last.get("role") != "tool"


def _may_think(body: Mapping[str, object]) -> bool:
    words = body.get("chat_template_kwargs")
    return not isinstance(words, dict) or words.get("enable_thinking") is not False


def _limit(body: Mapping[str, object]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "n_predict"):
        value = body.get(name)
        if isinstance(value, int) and value >= 0:
            return value
    return None


def _wants_usage(body: Mapping[str, object]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


_PLAIN: dict[tuple[str, str], Callable[[Api, Exchange], None]] = {
    ("GET", "/health"): Api._health,
    ("GET", "/v1/models"): Api._models,
    ("GET", "/slots"): Api._list_slots,
    ("GET", "/languages"): Api._languages,
    ("GET", "/metrics"): Api._metrics,
}
_TIERS: dict[tuple[str, str], Callable[[Api, Exchange], Awaitable[None]]] = {
    ("POST", "/sleep"): Api._sleep,
    ("POST", "/wake"): Api._wake,
}
_GENERATIONS = {
    ("POST", "/v1/chat/completions"): ("chat", True),
    ("POST", "/v1/completions"): ("completions", False),
}
_COMPUTATIONS: dict[tuple[str, str], tuple[str, Callable[[Api, Mapping[str, object]], object]]] = {
    ("POST", "/v1/embeddings"): ("embeddings", Api._embeddings),
    ("POST", "/v1/rerank"): ("rerank", Api._rerank),
    ("POST", "/tokenize"): ("tokenize", Api._tokenize),
    ("POST", "/detokenize"): ("tokenize", Api._detokenize),
    ("POST", "/translate"): ("translate", Api._translate),
}
