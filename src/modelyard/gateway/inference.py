"""The inference lanes: which handler serves a path, and how a request becomes a demand.

Used by the server (`handler_for`); hands over to `serve.Service`. The paths of OpenAI's API and llama.cpp's
tokenizer endpoints differ in nothing but their engine support, so one handler serves all; the other APIs are
translated to the engine's chat, each by its own module.
"""

from __future__ import annotations

import orjson

from modelyard.errors import InvalidRequest, MethodNotAllowed, NotSupported
from modelyard.gateway import anthropic, ollama, ollama_listing, ollama_request, progress
from modelyard.gateway.api import OPENAI
from modelyard.gateway.auth import Gate
from modelyard.gateway.exchange import Exchange, Handler
from modelyard.gateway.generate import demand_of
from modelyard.gateway.http.answers import JSON
from modelyard.gateway.names import Names
from modelyard.gateway.ollama_pull import Pull
from modelyard.gateway.serve import Demand, Service
from modelyard.gateway.snapshot import Snapshot
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
SHOW = "/api/show"
PULL = "/api/pull"
ALL_KINDS = {
    **KINDS,
    GENERATE: "generate",
    MESSAGES: "messages",
    COUNT_TOKENS: "count_tokens",
    **OLLAMA_KINDS,
}
TRANSLATED = (GENERATE, MESSAGES, COUNT_TOKENS, *OLLAMA_KINDS, SHOW, PULL)


class Inference:
    def __init__(
        self, service: Service, names: Names, gate: Gate, driver: Driver, snapshot: Snapshot
    ) -> None:
        self._service = service
        self._names = names
        self._gate = gate
        self._driver = driver
        self._snapshot = snapshot
        self._handlers: dict[str, Handler] = {
            **dict.fromkeys(KINDS, self._pass_on),
            GENERATE: self._generate,
            MESSAGES: self._messages,
            COUNT_TOKENS: self._count_tokens,
            **dict.fromkeys(OLLAMA_KINDS, self._ollama),
            SHOW: self._show,
            PULL: self._pull,
        }

    def handler_for(self, method: str, path: str) -> Handler | None:
        """The handler of an inference path, None for any other. Raises MethodNotAllowed."""
        handler = self._handlers.get(path)
        if handler is None:
            return None
        if method != "POST":
            raise MethodNotAllowed(f"{path} takes POST, not {method}.", allowed="POST")
        return handler

    async def _pass_on(self, exchange: Exchange) -> None:
        """Hand the body to the engine as it is; only the model's name may be replaced."""
        path = exchange.path
        body = await exchange.body()
        head = parse(body)
        entry = self._entry_of(head)
        _require(entry, path)
        name = entry.engine.model_name(entry.spec)
        if name is not None and head.model is not None:
            body = replace_model(body, name)
        priority = self._gate.priority(exchange.headers)
        demand = Demand(entry, KINDS[path], path.encode(), body, head.stream, priority)
        demand.progress = progress.wanted(exchange.headers, head.stream, OPENAI)
        await self._service.serve(exchange, demand)

    async def _generate(self, exchange: Exchange) -> None:
        """`/generate`: the short form, served by the engine's completions."""
        head = parse(await exchange.body())
        entry = self._entry_of(head)
        _require(entry, "/v1/completions")
        await self._serve(exchange, demand_of(entry, head))

    async def _messages(self, exchange: Exchange) -> None:
        head = parse(await exchange.body())
        entry = self._entry_of(head)
        _require(entry, anthropic.CHAT)
        await self._serve(exchange, anthropic.demand_of(entry, head))

    async def _count_tokens(self, exchange: Exchange) -> None:
        head = parse(await exchange.body())
        await self._serve(exchange, anthropic.count_demand_of(self._entry_of(head), head))

    async def _ollama(self, exchange: Exchange) -> None:
        """Ollama's chat, generations and embeddings; who asks for nothing has the model loaded."""
        head = parse(await exchange.body())
        kind = OLLAMA_KINDS[exchange.path]
        entry = self._entry_of_ollama(head)
        path = ollama.path_of(kind, head)
        _require(entry, path)
        keep_alive = ollama_request.keep_alive_of(head.value.get("keep_alive"))
        if path != ollama.EMBEDDINGS and ollama.only_loads(kind, head):
            chat = kind == "ollama_chat"
            await ollama.load(self._driver, exchange, entry, head, chat=chat, keep_alive=keep_alive)
            return
        demand = ollama.demand_of(kind, entry, head)
        try:
            await self._serve(exchange, demand)
        finally:
            ollama.keep(self._driver, entry, keep_alive)

    async def _show(self, exchange: Exchange) -> None:
        entry = self._entry_of_ollama(parse(await exchange.body()))
        exchange.respond(200, [JSON], orjson.dumps(ollama_listing.shown(entry, self._snapshot)))

    async def _pull(self, exchange: Exchange) -> None:
        head = parse(await exchange.body())
        entry = self._entry_of_ollama(head)
        await Pull(self._driver, exchange, entry, stream=ollama.streams(head)).run()

    def _entry_of_ollama(self, head: Head) -> Entry:
        """The model that was named; older clients say `name`."""
        name = head.model or head.value.get("name")
        return ollama.resolve(self._names, name) if isinstance(name, str) else self._entry_of(head)

    async def _serve(self, exchange: Exchange, demand: Demand) -> None:
        demand.priority = self._gate.priority(exchange.headers)
        demand.progress = progress.wanted(exchange.headers, demand.stream, demand.api)
        await self._service.serve(exchange, demand)

    def _entry_of(self, head: Head) -> Entry:
        """The model that was named, or the only one there is."""
        if head.model is not None:
            return self._names.resolve(head.model)
        entries = self._names.all()
        if len(entries) == 1:
            return entries[0]
        raise InvalidRequest("Say which model: `model` is missing.", param="model")


def _require(entry: Entry, path: str) -> None:
    """Raises NotSupported when the model's engine does not have this path."""
    if path not in entry.paths:
        served = ", ".join(sorted(other for other in entry.paths if other in KINDS))
        raise NotSupported(
            f"{entry.spec.model} (engine {entry.engine.type}) does not serve {path}; it serves {served}."
        )
