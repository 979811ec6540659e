"""`POST /generate`: the shortest way to some text. JSON in (`model`, `prompt`, `stream`, `max_tokens`,
`load`), JSON out (`text`, `usage`, `model`); as a stream, SSE events with the same fields, and `[DONE]`.

Called by the inference lanes. It writes the engine's completions request, and reshapes its answers. All else
that OpenAI's completions and the engine honour (`temperature`, `top_k`, …) is passed on under its own name;
any other field is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

import orjson

from modelyard.errors import InvalidRequest
from modelyard.gateway import chunks
from modelyard.gateway.demand import Demand
from modelyard.runtime.entries import Entry
from modelyard.wire.json_head import Head

OURS = frozenset({"model", "prompt", "stream", "max_tokens", "load"})
OPENAIS = frozenset(
    {
        *("temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias"),
        "user",
    }
)
CHATS = frozenset({"chat_template_kwargs", "thinking_budget_tokens"})  # of an engine's, for its chat alone
LONGEST = 60  # characters of a field's name that are compared and repeated


def demand_of(entry: Entry, head: Head) -> Demand:
    """The demand that a request body stands for. Raises InvalidRequest for a wrong field."""
    value = head.value
    prompt = value.get("prompt")
    if not isinstance(prompt, str):
        raise InvalidRequest("`prompt` has to be a string.", param="prompt")
    most = value.get("max_tokens", 256)
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise InvalidRequest("`max_tokens` has to be a positive integer.", param="max_tokens")
    load = value.get("load", True)
    if not isinstance(load, bool):
        raise InvalidRequest("`load` has to be true or false.", param="load")
    body = {key: field for key, field in value.items() if key not in OURS and field is not None}
    _check_names(body, OPENAIS | (entry.engine.chat_fields - CHATS), entry)
    body.update(
        model=entry.engine.model_name(entry.spec) or entry.spec.model,
        prompt=prompt,
        max_tokens=most,
        stream=head.stream,
    )
    if head.stream:
        body["stream_options"] = {"include_usage": True}
    model = entry.spec.model

    def whole(answer: bytes) -> bytes:
        return _reshape(chunks.object_of(answer), model)

    def events(data: bytes) -> bytes:
        return _reshape_events(data, model)

    return Demand(
        entry,
        "generate",
        b"/v1/completions",
        orjson.dumps(body),
        head.stream,
        load=load,
        reshape=whole,
        reshape_events=lambda: events,
    )


def _check_names(body: Mapping[str, object], known: frozenset[str], entry: Entry) -> None:
    """Raises InvalidRequest for a field that is not `known`, with those of a near name."""
    for name in body:
        if name not in known:
            shown = name if len(name) <= LONGEST else f"{name[:LONGEST]}…"
            near = get_close_matches(shown, known | OURS, n=2)
            hint = f"Did you mean {' or '.join(f'`{other}`' for other in near)}?" if near else ""
            said = f"`{shown}` is no field that /generate takes for {entry.spec.model}. {hint}"
            raise InvalidRequest(said.strip(), param=shown)


def _reshape(answer: dict[str, object], model: str) -> bytes:
    short: dict[str, object] = {"text": chunks.choice_of(answer).get("text", ""), "model": model}
    if answer.get("usage"):
        short["usage"] = answer["usage"]
    return orjson.dumps(short)


def _reshape_events(data: bytes, model: str) -> bytes:
    """Whole events in our shape, with LF for whatever ended their lines."""
    events: list[bytes] = []
    lines: list[bytes] = []
    for line in data.splitlines():
        if line:
            lines.append(line)
        elif lines:
            events.append(_reshape_event(lines, model))
            lines = []
    return b"".join(events)


def _reshape_event(lines: list[bytes], model: str) -> bytes:
    """One event in our shape; comments, errors and `[DONE]` as they are."""
    data = b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
    if data and data != chunks.DONE:
        answer = chunks.object_of(data)
        if "error" not in answer:
            lines = [b"data: " + _reshape(answer, model)]
    return b"\n".join(lines) + b"\n\n"
