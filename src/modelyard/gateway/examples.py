"""Examples in the OpenAPI document: of each body that is asked for, and of each answer that means success.

Called by `reference`. A shape's or field's own example comes first; else one is made of the schema, with what
FIELDS has where a type says too little. An engine's answer has no fields: ANSWERS has one for its path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

JSON = "application/json"
_NAME = "chat"
_USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}

FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("id", "model", "models", "name", "first_id", "last_id", "subject"), _NAME),
    **dict.fromkeys(("instance", "instances", "instance_ids"), "chat-1"),
    **dict.fromkeys(("device", "devices"), "gpu0"),
    **dict.fromkeys(("created_by", "changed_by", "who"), "operator"),
    **dict.fromkeys(("tags", "aliases"), "stable"),
    **dict.fromkeys(("capabilities", "features"), "chat"),
    **dict.fromkeys(("source", "sources"), "hf://some-org/chat-GGUF@v1.0/chat-Q4_K_M.gguf"),
    **dict.fromkeys(("digest", "sha256"), "3f9a0c12be47" + "0" * 52),
    **dict.fromkeys(("created_at", "modified_at", "expires_at"), "2026-01-01T00:00:00Z"),
    **dict.fromkeys(("created", "changed", "used", "at", "since", "started_at"), 1767225600),
    **dict.fromkeys(("bytes", "size", "size_vram", "need", "reserved", "observed", "total"), 2_600_000_000),
    **dict.fromkeys(("error", "problem", "blocked_by", "detail", "place", "leaving_for", "quantize"), ""),
    **dict.fromkeys(("has_more", "shutting_down", "suspect", "pin"), False),
    **dict.fromkeys(("prompt", "input", "content", "query", "documents"), "The capital of France is"),
    "messages": {"role": "user", "content": "hello"},
    "version": "chat@3f9a0c12be47",
    "engine": "llamacpp",
    "request": "r5c1e9a02-17",
    "max_tokens": 64,
}
"""Values by the name of their field, for one of their type or an item of it."""

_SAID = {"role": "assistant", "content": "Hello!"}
_CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1767225600,
    "model": _NAME,
    "choices": [{"index": 0, "message": _SAID, "finish_reason": "stop"}],
    "usage": _USAGE,
}
_TEXT = {"type": "output_text", "text": "Hello!", "annotations": []}
_VECTOR = [0.12, -0.5, 0.33]
_OLLAMA = {"model": _NAME, "created_at": "2026-01-01T00:00:00Z", "done": True, "done_reason": "stop"}
ANSWERS: Mapping[str, Any] = {
    "/v1/chat/completions": _CHAT,
    "/v1/models/{name}/predict": _CHAT,
    "/v1/completions": {
        "object": "text_completion",
        "model": _NAME,
        "choices": [{"index": 0, "text": " Paris.", "finish_reason": "stop"}],
        "usage": _USAGE,
    },
    "/v1/responses": {
        "object": "response",
        "status": "completed",
        "model": _NAME,
        "output": [{"type": "message", "role": "assistant", "content": [_TEXT]}],
    },
    "/v1/embeddings": {
        "object": "list",
        "model": _NAME,
        "data": [{"object": "embedding", "index": 0, "embedding": _VECTOR}],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    },
    "/v1/rerank": {"model": _NAME, "results": [{"index": 0, "relevance_score": 0.98}]},
    "/tokenize": {"tokens": [15339]},
    "/detokenize": {"content": "hello"},
    "/v1/messages": {
        "type": "message",
        "role": "assistant",
        "model": _NAME,
        "content": [{"type": "text", "text": "Hello!"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 9, "output_tokens": 3},
    },
    "/api/chat": {**_OLLAMA, "message": _SAID},
    "/api/generate": {**_OLLAMA, "response": " Paris."},
    "/api/embed": {"model": _NAME, "embeddings": [_VECTOR]},
    "/api/embeddings": {"embedding": _VECTOR},
    "/api/show": {"details": {"format": "gguf"}, "capabilities": ["completion", "tools"]},
    "/api/pull": {"status": "success"},
    "/metrics": 'modelyard_requests_total{model="chat",outcome="ok"} 17.0\n',
    "/admin/instances/{instance}/logs": "server is listening\n",
    "/admin/journal": '{"at": 1767225600.0, "kind": "load", "model": "chat"}\n',
}
"""By path, where no shape says what an answer holds."""


def add_examples(document: dict[str, Any]) -> None:
    """Put an example to each body and each successful answer of a document."""
    shapes = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                content["example"] = _of(content["schema"], shapes, asked=True)
            for status, answer in operation["responses"].items():
                if status.startswith("2"):
                    _answer(path, answer.get("content", {}), shapes)


def _answer(path: str, contents: Mapping[str, dict[str, Any]], shapes: Mapping[str, Any]) -> None:
    """Examples of one answer, which may come as JSON or as lines or events of it."""
    said = ANSWERS.get(path)
    for media, content in sorted(contents.items(), key=lambda each: each[0] != JSON):
        if said is None:
            said = _of(content["schema"], shapes)
        line = said if isinstance(said, str) else json.dumps(said)
        lines = {"text/event-stream": f"data: {line}\n\n", "application/x-ndjson": f"{line.strip()}\n"}
        content["example"] = said if media == JSON else lines.get(media, line)


def _of(schema: Mapping[str, Any], shapes: Mapping[str, Any], name: str = "", *, asked: bool = False) -> Any:
    """A value of a schema, of the field `name`. `asked`: of a body, with those fields that it needs."""
    if "$ref" in schema:
        schema = {**shapes[schema["$ref"].rpartition("/")[2]], **schema}
    for given in ("examples", "enum"):
        if given in schema:
            return schema[given][0]
    for given in ("const", "default"):
        if schema.get(given) is not None:
            return schema[given]
    if kinds := schema.get("anyOf"):
        wanted = asked or name in FIELDS or "$ref" in kinds[0] or {"type": "null"} not in kinds
        return _of(kinds[0], shapes, name, asked=asked) if wanted else None
    if fields := schema.get("properties"):
        if asked:
            needed = schema.get("required") or list(fields)[:1]
            fields = {one: fields[one] for one in fields if one in needed or one == "model"}
        return {one: _of(fields[one], shapes, one, asked=asked) for one in fields}
    kind = schema.get("type", "")
    if kind == "array":
        items = schema.get("prefixItems", [schema.get("items")])
        return [_of(item, shapes, name, asked=asked) for item in items]
    plain = {"string": "text", "integer": 1, "number": 0.5, "boolean": True, "object": {}}.get(kind)
    known, fits = FIELDS.get(name), float | int if kind == "number" else type(plain)
    return known if isinstance(known, fits) else plain
