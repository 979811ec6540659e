"""Anthropic's Messages API in front of an engine's chat completions: requests in, demands out.

Called by the inference lanes. Translated also where an engine serves `/v1/messages` itself: llama.cpp's drops
documents and unknown fields without a word, takes the choice of one tool for that of any, and its errors are
in OpenAI's shape. What is asked is in `anthropic_request`, what is answered in `anthropic_answer`.
"""

from __future__ import annotations

import orjson

from modelyard.errors import NotSupported
from modelyard.gateway import anthropic_answer
from modelyard.gateway.anthropic_request import chat_of, hides_thinking
from modelyard.gateway.api import ANTHROPIC
from modelyard.gateway.demand import Demand
from modelyard.gateway.fields import Fields
from modelyard.gateway.relay import Reshape
from modelyard.runtime.entries import Entry
from modelyard.wire.json_head import Head

CHAT = "/v1/chat/completions"
COUNT = "/v1/chat/completions/input_tokens"
TOKENIZE = "/tokenize"


def demand_of(entry: Entry, head: Head) -> Demand:
    """The demand of `POST /v1/messages`. Raises InvalidRequest for what cannot be honoured."""
    body = chat_of(entry.engine, Fields(head.value))
    body |= {"model": entry.engine.model_name(entry.spec) or entry.spec.model, "stream": head.stream}
    if head.stream:
        body["stream_options"] = {"include_usage": True}
    wanted = anthropic_answer.Wanted(
        head.model or entry.spec.model, hides_thinking(head.value), body.get("tool_choice") == "required"
    )

    def whole(answer: bytes) -> bytes:
        return anthropic_answer.whole(answer, wanted)

    def events() -> Reshape:
        return anthropic_answer.Events(wanted).feed

    return Demand(
        entry,
        "messages",
        CHAT.encode(),
        orjson.dumps(body),
        head.stream,
        reshape=whole,
        reshape_events=events,
        api=ANTHROPIC,
    )


def count_demand_of(entry: Entry, head: Head) -> Demand:
    """The demand of `POST /v1/messages/count_tokens`: counted by the engine with its chat template where it
    can, else without, by its tokenizer. Raises NotSupported where it has neither."""
    chat = chat_of(entry.engine, Fields(head.value), counted=True)
    model = entry.engine.model_name(entry.spec) or entry.spec.model
    if COUNT in entry.paths:
        path, body = COUNT, {**chat, "model": model}
    elif TOKENIZE in entry.paths:
        path, body = TOKENIZE, {"model": model, "content": _text_of(chat)}
    else:
        raise NotSupported(
            f"{entry.spec.model} (engine {entry.engine.type}) cannot count tokens: it has no {TOKENIZE}."
        )
    return Demand(
        entry,
        "count_tokens",
        path.encode(),
        orjson.dumps(body),
        stream=False,
        reshape=anthropic_answer.tokens,
        api=ANTHROPIC,
    )


def _text_of(chat: dict[str, object]) -> str:
    """Everything that is said in a chat, tools included, as one text."""
    return "\n".join(_texts(chat["messages"])) + "".join(_texts(chat.get("tools", [])))


def _texts(value: object) -> list[str]:
    """Every string in a JSON value, images and the names of fields apart."""
    if isinstance(value, str):
        return [] if value.startswith("data:image/") else [value]
    if isinstance(value, dict):
        kept = [value[name] for name in value if name not in ("role", "type", "id", "tool_call_id")]
        return [text for inner in kept for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return []
