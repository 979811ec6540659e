"""Ollama's API in front of an engine: its chat, generations and embeddings, and how long a model stays.

Called by the inference lanes. What is asked is in `ollama_request`, what is answered in `ollama_answer`; what
Ollama lists is in `ollama_listing`, `/api/pull` in `ollama_pull`.
"""

from __future__ import annotations

from time import perf_counter

import orjson

from modelyard.core.events import KeepAliveAsked
from modelyard.errors import ModelNotFound
from modelyard.gateway import ollama_answer as answers
from modelyard.gateway import ollama_request as requests
from modelyard.gateway.api import OLLAMA
from modelyard.gateway.demand import Demand
from modelyard.gateway.exchange import Disconnected, Exchange
from modelyard.gateway.fields import Fields
from modelyard.gateway.http.answers import JSON
from modelyard.gateway.interrupt import Interrupt, Interrupted
from modelyard.gateway.names import Names
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.wire.json_head import Head

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
LATEST = ":latest"


def resolve(names: Names, name: str) -> Entry:
    """The model of this name, with Ollama's tag `:latest` or without it. Raises ModelNotFound."""
    try:
        return names.resolve(name)
    except ModelNotFound:
        other = name.removesuffix(LATEST) if name.endswith(LATEST) else name + LATEST
        try:
            return names.resolve(other)
        except ModelNotFound:
            pass
        raise


def streams(head: Head) -> bool:
    """Ollama streams unless it is told not to."""
    return head.value.get("stream") is not False


def only_loads(kind: str, head: Head) -> bool:
    """Without anything to answer, a chat or a generation loads the model, or lets it go."""
    value = head.value
    if kind == "ollama_chat":
        return not value.get("messages")
    return not value.get("prompt") and not value.get("images") and not value.get("suffix")


def path_of(kind: str, head: Head) -> str:
    """The engine's path that answers a request of this kind."""
    if kind == "ollama_chat":
        return CHAT
    if kind == "ollama_generate":
        return COMPLETIONS if head.value.get("raw") is True else CHAT
    return EMBEDDINGS


def demand_of(kind: str, entry: Entry, head: Head) -> Demand:
    """The demand of a request. Raises InvalidRequest for what cannot be honoured."""
    path = path_of(kind, head)
    spec, engine, fields = entry.spec, entry.engine, Fields(head.value)
    shape = answers.Shape(
        head.model or spec.model, kind == "ollama_chat", head.value.get("think") is False, perf_counter()
    )
    stream = streams(head) and path != EMBEDDINGS
    if path == EMBEDDINGS:
        older = kind == "ollama_embeddings"
        body, dimensions = requests.embed_of(spec, engine, fields, "prompt" if older else "input")

        def whole(answer: bytes) -> bytes:
            return answers.embedding(answer) if older else answers.embeddings(answer, shape, dimensions)
    else:
        make = {CHAT: requests.generate_of, COMPLETIONS: requests.raw_of}[path]
        body = (requests.chat_of if shape.chat else make)(spec, engine, fields)
        body["stream"] = stream
        if stream:
            body["stream_options"] = {"include_usage": True}

        def whole(answer: bytes) -> bytes:
            return answers.whole(answer, shape)

    body["model"] = engine.model_name(spec) or spec.model
    return Demand(
        entry,
        kind,
        path.encode(),
        orjson.dumps(body),
        stream,
        reshape=whole,
        reshape_events=lambda: answers.Lines(shape).feed,
        api=OLLAMA,
    )


def keep(driver: Driver, entry: Entry, keep_alive: float | None) -> None:
    """Have the model's instances stay for as long as a client asked, if it did."""
    if keep_alive is not None:
        driver.post(KeepAliveAsked(entry.spec.version, keep_alive))


async def load(
    driver: Driver, exchange: Exchange, entry: Entry, head: Head, *, chat: bool, keep_alive: float | None
) -> None:
    """Answer a request that only loads the model; with a keep-alive of 0 it goes when it is idle. Raises what
    stood in the way, and Disconnected."""
    shape = answers.Shape(head.model or entry.spec.model, chat, hide_thinking=False, arrived=perf_counter())
    requests.check_load(entry.spec, entry.engine, Fields(head.value), chat=chat)
    if keep_alive != 0.0:
        interrupt = Interrupt()
        exchange.on_close(interrupt.depart)
        if interrupt.departed:
            raise Disconnected
        try:
            with interrupt:
                await driver.load(entry.spec.version)
        except Interrupted:
            raise Disconnected from None
    keep(driver, entry.newest, keep_alive)  # it may have been replaced while it was loaded
    said = shape.part("") | {"done": True, "done_reason": "unload" if keep_alive == 0.0 else "load"}
    if streams(head):
        exchange.respond(200, [(b"content-type", OLLAMA.media)], orjson.dumps(said) + b"\n")
    else:
        exchange.respond(200, [JSON], orjson.dumps(said))
