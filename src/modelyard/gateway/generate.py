"""`POST /generate`: the shortest way to some text. JSON in (`model`, `prompt`, `stream`, `max_tokens`,
`load`), JSON out (`text`, `usage`, `model`); as a stream, SSE events with the same fields, and `[DONE]`.

Called by the inference lanes. It writes the engine's completions request, and reshapes its answers; all else
(`temperature`, `stop`, `seed`, …) is passed on under its own name.
"""

from __future__ import annotations

import orjson

from modelyard.errors import InvalidRequest
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
        return _reshape(orjson.loads(answer), model)

    def events(data: bytes) -> bytes:
        return b"".join(_reshape_event(event, model) for event in data.split(b"\n\n") if event.strip())

    return Demand(
        entry,
        "generate",
        b"/v1/completions",
        orjson.dumps(body),
        head.stream,
        load=load,
        reshape=whole,
        reshape_events=events,
    )


def _reshape(answer: dict[str, object], model: str) -> bytes:
    choices = answer.get("choices")
    text = choices[0].get("text", "") if isinstance(choices, list) and choices else ""
    short: dict[str, object] = {"text": text, "model": model}
    if answer.get("usage"):
        short["usage"] = answer["usage"]
    return orjson.dumps(short)


def _reshape_event(event: bytes, model: str) -> bytes:
    """One event in our shape; comments and `[DONE]` as they are."""
    data = event.strip()
    if not data.startswith(b"data:") or data.endswith(b"[DONE]"):
        return data + b"\n\n"
    answer = orjson.loads(data[5:])
    if "error" in answer:
        return data + b"\n\n"
    return b"data: " + _reshape(answer, model) + b"\n\n"
