"""Examples in the OpenAPI document: of each body that is asked for, and of each answer that means success.

Called by `reference`. A shape's own example comes first; else one is put together of its fields, by their
names and types. An answer of an engine has no fields here: ANSWERS has one for its path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from modelyard import __version__

JSON = "application/json"
_NAME, _INSTANCE = "chat", "chat-1"
_SOURCE = "hf://some-org/chat-GGUF@v1.0/chat-Q4_K_M.gguf"
_DIGEST = "3f9a0c12be47" + "0" * 52
_MOMENT, _BYTES = 1767225600, 2_600_000_000
_MESSAGES = [{"role": "user", "content": "hello"}]
_USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}

FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("model", "name", "models", "first_id", "last_id", "display_name", "subject"), _NAME),
    **dict.fromkeys(("instance", "instances", "instance_ids"), _INSTANCE),
    **dict.fromkeys(("digest", "sha256"), _DIGEST),
    **dict.fromkeys(("created_by", "who"), "operator"),
    **dict.fromkeys(("created", "changed", "used", "at", "since", "kept_since", "started_at"), _MOMENT),
    **dict.fromkeys(("created_at", "modified_at", "expires_at"), "2026-01-01T00:00:00Z"),
    **dict.fromkeys(("bytes", "size", "size_vram", "need", "reserved", "observed", "total"), _BYTES),
    **dict.fromkeys(("budget", "quota", "free"), 10 * _BYTES),
    **dict.fromkeys(("foreign", "mapped", "quarantined", "lost", "bad", "running", "reserve", "done"), 0),
    **dict.fromkeys(("code", "param", "refused_at", "retry_in", "blocked_for", "made_from", "result"), None),
    **dict.fromkeys(("state_file", "journal", "registry", "config", "ended", "line", "oldest"), None),
    **dict.fromkeys(("error", "problem", "blocked_by", "leaving_for", "detail", "place", "quantize"), ""),
    **dict.fromkeys(("has_more", "shutting_down", "suspect", "pin"), False),
    **dict.fromkeys(("source", "sources"), _SOURCE),
    **dict.fromkeys(("capabilities", "features"), "chat"),
    **dict.fromkeys(("context", "context_length"), 8192),
    **dict.fromkeys(("seconds", "median", "load_seconds"), 4.2),
    **dict.fromkeys(("message", "reason", "note", "text"), "ready after 4.2 s"),
    **dict.fromkeys(("devices", "device"), "gpu0"),
    **dict.fromkeys(("path", "role"), "model"),
    **dict.fromkeys(("before", "from", "previous"), 1),
    **dict.fromkeys(("after", "to", "current"), 2),
    **dict.fromkeys(("input", "content"), "hello"),
    **dict.fromkeys(("family", "families"), "llama"),
    "id": _NAME,
    "version": "chat@3f9a0c12be47",
    "policy": {"keep_alive": "1h", "priority": "high"},
    "spec": {"engine": "llamacpp", "source": _SOURCE},
    "engine": "llamacpp",
    "owner": "registry",
    "tags": "stable",
    "aliases": "default",
    "pairs": [["en", "de"]],
    "languages": "en",
    "licence": "apache-2.0",
    "request": "r5c1e9a02-17",
    "messages": _MESSAGES,
    "prompt": "The capital of France is",
    "query": "a capital",
    "documents": "Paris",
    "tokens": 15339,
    "max_tokens": 64,
    "type": "q8_0",
    "kind": "gguf",
    "pids": 4711,
    "log": "/var/lib/modelyard/logs/chat-1.log",
    "open": "how long the answers take",
    "order": "load chat",
    "action": "update",
    "description": "for support",
    "format": "gguf",
    "parameter_size": "4B",
    "quantization_level": "Q4_K_M",
    "parent_model": "",
    # -- where a name means something else in a shape, and whole shapes ---------------------------------
    "ApplyOrder.id": "plan-5c1e9a02b7d4f613",
    "AuditView.after": {"policy": {"keep_alive": "1h"}},
    "AuditView.before": {"policy": {}},
    "AuditView.id": 17,
    "ConfigChange.source": "/etc/modelyard.yaml",
    "ConfigView.source": "/etc/modelyard.yaml",
    "DeviceView.id": "gpu0",
    "DeviceView.name": "NVIDIA H100",
    "EventView.fields": {"model": _NAME, "seconds": 4.2},
    "EventView.kind": "ready",
    "EventView.subject": _INSTANCE,
    "Explanation.id": "r5c1e9a02-17",
    "Explanation.requests": {"ok": 17},
    "FieldChange.path": "slots",
    "Generated.text": " Paris.",
    "InstanceDetails.id": _INSTANCE,
    "InstanceDetails.state": "ready",
    "InstanceView.id": _INSTANCE,
    "InstanceView.state": "ready",
    "OllamaVersion.modelyard": __version__,
    "OllamaVersion.version": "0.12.6",
    "PlannedMemory.free": {"before": 10 * _BYTES, "after": 9 * _BYTES},
    "PlannedMemory.reserved": {"before": 0, "after": _BYTES},
    "PlannedStep.at": 0.0,
    "PlannedStep.for": None,
    "PlannedStep.memory": {"gpu0": _BYTES},
    "PlannedStep.reason": "asked to load",
    "PlannedStep.score": {},
    "PlanView.id": "plan-5c1e9a02b7d4f613",
    "PlanApplied.id": "plan-5c1e9a02b7d4f613",
    "Prefetched.error": None,
    "QueueView.waiting": {"high": 0, "normal": 1, "low": 0},
    "Readiness.reason": "",
    "Registered.number": 2,
    "Registered.revision": 3,
    "Registered.tags": {"stable": 2},
    "Status.reason": "",
    "Status.version": __version__,
    "StoryLine.kind": "granted",
    "TaskView.error": None,
    "TaskView.id": "t5c1e9a02-3",
    "TaskView.kind": "promote",
    "TaskView.note": "loading",
    "TaskView.subject": "chat@2",
    "OllamaChat": {"model": _NAME, "messages": _MESSAGES},
    "OllamaGenerate": {"model": _NAME, "prompt": "The capital of France is"},
    "PlanOrder": {"load": {"model": _NAME}},
}
"""Values by the name of their field, or of shape and field; those of a list are one item of it."""

_CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": _MOMENT,
    "model": _NAME,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
    "usage": _USAGE,
}
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
        "output": [
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Hello!", "annotations": []}],
            }
        ],
    },
    "/v1/embeddings": {
        "object": "list",
        "model": _NAME,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.12, -0.5, 0.33]}],
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
    "/api/chat": {**_OLLAMA, "message": {"role": "assistant", "content": "Hello!"}},
    "/api/generate": {**_OLLAMA, "response": " Paris."},
    "/api/embed": {"model": _NAME, "embeddings": [[0.12, -0.5, 0.33]]},
    "/api/embeddings": {"embedding": [0.12, -0.5, 0.33]},
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
    """A value of a schema; `name` is SHAPE.FIELD. `asked`: of a body, with those fields that it needs."""
    shape = schema.get("$ref", "").rpartition("/")[2]
    field = name if name in FIELDS else name.rpartition(".")[2]
    kinds = schema.get("anyOf", [schema])
    if field in FIELDS:
        for kind in kinds:
            if _fits(FIELDS[field], kind, shapes):
                is_item = kind.get("type") == "array" and not isinstance(FIELDS[field], list)
                return [FIELDS[field]] if is_item else FIELDS[field]
    if shape in FIELDS:
        return FIELDS[shape]
    if shape:
        schema = shapes[shape]
    for given in ("examples", "enum"):
        if given in schema:
            return schema[given][0]
    if "const" in schema:
        return schema["const"]
    if fields := schema.get("properties"):
        if asked:
            least = schema.get("required") or [
                one for one in fields if fields[one].get("default") is not None
            ]
            fields = {one: fields[one] for one in fields if one in least or one == "model"}
        owner = shape or schema.get("title", "")
        return {one: _of(fields[one], shapes, f"{owner}.{one}", asked=asked) for one in fields}
    if schema.get("default") is not None:
        return schema["default"]
    kind = next((kind for kind in kinds if kind.get("type") != "null"), schema)
    if kind is not schema:
        return _of(kind, shapes, name, asked=asked)
    if kind.get("type") == "array":
        return [_of(kind["items"], shapes, name, asked=asked)]
    return {"string": "text", "integer": 1, "number": 0.5, "boolean": True, "object": {}}.get(
        kind.get("type", "")
    )


def _fits(value: Any, schema: Mapping[str, Any], shapes: Mapping[str, Any]) -> bool:
    """Whether a value of FIELDS is of this type, or an item of a list of it."""
    schema = shapes[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if schema.get("type") == "array" and not isinstance(value, list):
        return _fits(value, schema["items"], shapes)
    if value is None or isinstance(value, bool):
        return schema.get("type") == ("null" if value is None else "boolean")
    if "enum" in schema:
        return value in schema["enum"]
    types = {"string": str, "integer": int, "number": int | float, "array": list, "object": dict}
    plain = isinstance(value, types.get(schema.get("type", ""), ())) and "properties" not in schema
    return plain or not schema.keys() - {"title", "description"}
