"""The inference lanes: which handler serves a path, and how a request becomes a demand.

Used by the server (`handler_for`); hands over to `serve.Service`. The paths of OpenAI's API and llama.cpp's
tokenizer endpoints differ in nothing but their engine support, so one handler serves all; the other APIs are
translated to the engine's chat, each by its own module.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from modelyard.engines.base import TRANSLATE
from modelyard.errors import InvalidRequest, MethodNotAllowed, NotSupported
from modelyard.gateway import anthropic, ollama, ollama_listing, ollama_request, progress
from modelyard.gateway.auth import priority_of
from modelyard.gateway.demand import Demand
from modelyard.gateway.exchange import Exchange, Handler
from modelyard.gateway.generate import demand_of
from modelyard.gateway.http.answers import JSON
from modelyard.gateway.names import Bring, Names, NotServed, reach
from modelyard.gateway.ollama_pull import Pull
from modelyard.gateway.paths import MODELS, asked
from modelyard.gateway.serve import Service
from modelyard.gateway.snapshot import Snapshot
from modelyard.gateway.translation.lane import KINDS_BY_PATH, Lanes
from modelyard.gateway.translation.request import is_translation
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.wire.json_head import Head, parse, replace_model

KINDS = {  # by path: what it is called in metrics
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
    "/v1/rerank": "rerank",
    "/v1/responses": "responses",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
}
GENERATE = "/generate"
MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
OLLAMA_KINDS = {  # by path: likewise
    "/api/chat": "ollama_chat",
    "/api/generate": "ollama_generate",
    "/api/embed": "ollama_embed",
    "/api/embeddings": "ollama_embeddings",
}
BODIES = {  # by path: the fields by which its body is known, in the order in which they are looked for
    "/v1/chat/completions": ("messages",),
    "/v1/completions": ("prompt",),
    "/v1/rerank": ("query", "documents"),
    "/v1/embeddings": ("input",),
    "/v1/responses": ("input",),
    "/tokenize": ("content",),
    "/detokenize": ("tokens",),
}
VERB = "/predict"
SHOW = "/api/show"
PULL = "/api/pull"
ALL_KINDS = {
    **KINDS,
    GENERATE: "generate",
    MESSAGES: "messages",
    COUNT_TOKENS: "count_tokens",
    **OLLAMA_KINDS,
    **KINDS_BY_PATH,
}
TRANSLATED = (GENERATE, MESSAGES, COUNT_TOKENS, *OLLAMA_KINDS, SHOW, PULL)


class Inference:
    """`bring` has a registered version served under its own name; it raises ModelNotFound. `lanes` are those
    of translation."""

    def __init__(
        self,
        service: Service,
        names: Names,
        driver: Driver,
        snapshot: Snapshot,
        bring: Bring,
        lanes: Lanes,
    ) -> None:
        self._service = service
        self._names = names
        self._driver = driver
        self._snapshot = snapshot
        self._bring = bring
        self._lanes = lanes
        self._demands: dict[str, Callable[[Exchange, Head, bytes], Demand]] = {
            **dict.fromkeys(KINDS, self._passed_on),
            GENERATE: self._generated,
            MESSAGES: self._message,
            COUNT_TOKENS: self._count,
            **dict.fromkeys(OLLAMA_KINDS, self._of_ollama),
        }
        self._handlers: dict[str, Handler] = {
            **dict.fromkeys((*KINDS, GENERATE, MESSAGES, COUNT_TOKENS), self._serve),
            **dict.fromkeys(OLLAMA_KINDS, self._ollama),
            SHOW: self._show,
            PULL: self._pull,
            **lanes.posts,
        }

    def handler_for(self, method: str, path: str) -> Handler | None:
        """The handler of an inference path, None for any other. Raises MethodNotAllowed."""
        handler = self._handlers.get(path)
        if handler is None:
            is_one = method == "POST" and path.startswith(MODELS) and path.endswith(VERB)
            return self._predict if is_one else self._lanes.reader_for(method, path)
        if method != "POST":
            raise MethodNotAllowed(f"{path} takes POST, not {method}.", allowed="POST")
        return handler

    async def _demand_again(self, exchange: Exchange) -> Demand:
        """What a request that was begun wants of its model as it is now."""
        body = await exchange.body()
        return self._demands[exchange.path](exchange, parse(body), body)

    async def _serve(self, exchange: Exchange) -> None:
        body = await exchange.body()
        head = parse(body)
        try:  # as `reach` does; this is asked most often
            demand = self._demands[exchange.path](exchange, head, body)
        except NotServed as registered:
            await self._bring(registered.version)
            demand = self._demands[exchange.path](exchange, head, body)
        await self._service.serve(exchange, demand, self._demand_again)

    async def _predict(self, exchange: Exchange) -> None:
        """One model by its path, with the body of whichever of its endpoints knows it."""
        if asked(exchange.raw_path) is None:
            raise MethodNotAllowed(f"{exchange.path} takes no POST.", allowed="GET, PATCH, DELETE")
        body = await exchange.body()
        head = parse(body)
        if is_translation(head.value):
            await self._lanes.predict(exchange, asked(exchange.raw_path) or "", head.value)
            return
        demand = await reach(lambda: self._predicted(exchange, head, body), self._bring)
        await self._service.serve(exchange, demand, self._predicted_again)

    async def _predicted_again(self, exchange: Exchange) -> Demand:
        body = await exchange.body()
        return self._predicted(exchange, parse(body), body)

    def _predicted(self, exchange: Exchange, head: Head, body: bytes) -> Demand:
        entry = self._names.resolve(asked(exchange.raw_path) or "")
        if head.model is not None and self._names.resolve(head.model) is not entry:
            raise InvalidRequest(f"`model` is not {entry.spec.model}; leave it out.", param="model")
        return self._to(exchange, entry, path_of(entry, head), head, body)

    def _passed_on(self, exchange: Exchange, head: Head, body: bytes) -> Demand:
        entry = self._entry_of(head)
        _require(entry, exchange.path)
        return self._to(exchange, entry, exchange.path, head, body)

    def _to(self, exchange: Exchange, entry: Entry, path: str, head: Head, body: bytes) -> Demand:
        """The engine gets the body as it is; only the model's name may be replaced, or put in."""
        name = entry.engine.model_name(entry.spec)
        if name is not None:
            body = replace_model(body, name)
        return _asked(exchange, Demand(entry, KINDS[path], path.encode(), body, head.stream))

    def _generated(self, exchange: Exchange, head: Head, body: bytes) -> Demand:
        """`/generate`: the short form, served by the engine's completions."""
        entry = self._entry_of(head)
        _require(entry, "/v1/completions")
        return _asked(exchange, demand_of(entry, head))

    def _message(self, exchange: Exchange, head: Head, body: bytes) -> Demand:
        entry = self._entry_of(head)
        _require(entry, anthropic.CHAT)
        return _asked(exchange, anthropic.demand_of(entry, head))

    def _count(self, exchange: Exchange, head: Head, body: bytes) -> Demand:
        return _asked(exchange, anthropic.count_demand_of(self._entry_of(head), head))

    async def _ollama(self, exchange: Exchange) -> None:
        """Ollama's chat, generations and embeddings; who asks for nothing has the model loaded."""
        body = await exchange.body()
        head = parse(body)
        kind = OLLAMA_KINDS[exchange.path]
        entry, path = await reach(lambda: self._place_of_ollama(exchange, head), self._bring)
        keep_alive = ollama_request.keep_alive_of(head.value.get("keep_alive"))
        if path != ollama.EMBEDDINGS and ollama.only_loads(kind, head):
            chat = kind == "ollama_chat"
            await ollama.load(self._driver, exchange, entry, head, chat=chat, keep_alive=keep_alive)
            return
        demand = self._of_ollama(exchange, head, body)
        try:
            await self._service.serve(exchange, demand, self._demand_again)
        finally:
            ollama.keep(self._driver, demand.entry, keep_alive)

    def _of_ollama(self, exchange: Exchange, head: Head, body: bytes) -> Demand:
        entry, _ = self._place_of_ollama(exchange, head)
        return _asked(exchange, ollama.demand_of(OLLAMA_KINDS[exchange.path], entry, head))

    def _place_of_ollama(self, exchange: Exchange, head: Head) -> tuple[Entry, str]:
        """The model, and the path of its engine."""
        entry = self._entry_of_ollama(head)
        path = ollama.path_of(OLLAMA_KINDS[exchange.path], head)
        _require(entry, path)
        return entry, path

    async def _show(self, exchange: Exchange) -> None:
        head = parse(await exchange.body())
        entry = await reach(lambda: self._entry_of_ollama(head), self._bring)
        exchange.respond(200, [JSON], orjson.dumps(ollama_listing.shown(entry, self._snapshot)))

    async def _pull(self, exchange: Exchange) -> None:
        head = parse(await exchange.body())
        entry = await reach(lambda: self._entry_of_ollama(head), self._bring)
        await Pull(self._driver, exchange, entry, stream=ollama.streams(head)).run()

    def _entry_of_ollama(self, head: Head) -> Entry:
        """The model that was named; older clients say `name`."""
        name = head.model or head.value.get("name")
        return ollama.resolve(self._names, name) if isinstance(name, str) else self._entry_of(head)

    def _entry_of(self, head: Head) -> Entry:
        """The model that was named, or the only one there is."""
        if head.model is not None:
            return self._names.resolve(head.model)
        entries = self._names.all()
        if len(entries) == 1:
            return entries[0]
        raise InvalidRequest("Say which model: `model` is missing.", param="model")


def _asked(exchange: Exchange, demand: Demand) -> Demand:
    """With what the headers say."""
    demand.key = exchange.caller.name
    demand.priority = priority_of(exchange)
    demand.progress = progress.wanted(exchange.headers, demand.stream, demand.api)
    return demand


def path_of(entry: Entry, head: Head) -> str:
    """The path of the model's engine that takes such a body. Raises InvalidRequest, NotSupported."""
    paths = [path for path, fields in BODIES.items() if all(field in head.value for field in fields)]
    if not paths:
        bodies = {**BODIES, TRANSLATE: ("q", "target")}
        there = dict.fromkeys(fields for path, fields in bodies.items() if path in entry.paths)
        known = "; ".join(" and ".join(f"`{each}`" for each in fields) for fields in there)
        raise InvalidRequest(
            f"The body is of no endpoint of {entry.spec.model}; one of these has to be in it: {known}."
        )
    found = next((path for path in paths if path in entry.paths), None)
    if found is None:
        _require(entry, paths[0])
    return found or paths[0]


def _require(entry: Entry, path: str) -> None:
    """Raises NotSupported when the model's engine does not have this path."""
    if path not in entry.paths:
        served = ", ".join(sorted(other for other in entry.paths if other in (*KINDS, TRANSLATE)))
        raise NotSupported(
            f"{entry.spec.model} (engine {entry.engine.type}) does not serve {path}; it serves {served}."
        )
