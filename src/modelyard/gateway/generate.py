"""`POST /generate`: the shortest way to some text. JSON in (`model`, `prompt`, `stream`, `max_tokens`,
`load`), JSON out (`text`, `usage`, `model`); as a stream, SSE events with the same fields, and `[DONE]`.

Called by the inference lanes. It writes the engine's completions request, and reshapes its answers; all else
(`temperature`, `stop`, `seed`, …) is passed on under its own name.
"""

from __future__ import annotations

import orjson

from modelyard.errors import InvalidRequest
from modelyard.gateway import chunks
from modelyard.gateway.serve import Demand
from modelyard.runtime.entries import Entry
from modelyard.wire.json_head import Head

OURS = frozenset({"model", "prompt", "stream", "max_tokens", "load"})


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
    body: dict[str, object] = {key: field for key, field in value.items() if key not in OURS}
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
