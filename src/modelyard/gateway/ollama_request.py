"""Requests of Ollama's API as bodies for an engine: its chat, its completions (`raw`), its embeddings.

Called by `ollama`. Every field is honoured, refused by name, or one of the HINTS, which change no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import inf
from typing import Any

import orjson

from modelyard.core.types import Spec
from modelyard.engines.base import Engine
from modelyard.gateway.fields import Fields, refuse

HINTS = ("model", "name", "stream", "keep_alive", "truncate", "shift")
# How Ollama would load the model: here the configuration says that.
LOADING = (
    *("num_batch", "num_gpu", "main_gpu", "low_vram", "use_mmap", "use_mlock", "num_thread", "numa"),
    *("f16_kv", "draft_num_predict"),
)
_SAME = {
    "temperature": float,
    "top_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
}
_ENGINES = {  # by option: the field of engines that honour it, beyond OpenAI's
    "top_k": int,
    "min_p": float,
    "typical_p": float,
    "repeat_penalty": float,
    "repeat_last_n": int,
    "mirostat": int,
    "mirostat_tau": float,
    "mirostat_eta": float,
    "num_keep": int,
}
_DURATION = re.compile(r"-?(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_IMAGES = {"/9j/": "jpeg", "iVBOR": "png", "R0lGOD": "gif", "UklGR": "webp", "Qk": "bmp"}
LONGEST = 365 * 86400.0
_LEVELS = ("low", "medium", "high", "max")

Message = dict[str, Any]


def keep_alive_of(value: object) -> float | None:
    """Seconds: a number, or Go's notation (`5m`, `1h30m`); below zero, or longer than a year, is for ever.
    None: not said. Raises InvalidRequest."""
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,12}", value):
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and _DURATION.fullmatch(value):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PARTS.findall(value))
        seconds = -1.0 if value.startswith("-") else seconds
    else:
        refuse("keep_alive", "has to be a number of seconds or a duration such as `5m`")
    return seconds if 0 <= seconds <= LONGEST else inf


def chat_of(spec: Spec, engine: Engine, fields: Fields) -> dict[str, object]:
    """The engine's chat of `/api/chat`. Raises InvalidRequest."""
    messages = _messages(fields)
    if messages[-1]["role"] == "assistant":
        refuse("messages", "has to end with a message of the user: to go on with an answer is not supported")
    body: dict[str, object] = {"messages": messages}
    if tools := [_tool(tool) for tool in fields.objects("tools")]:
        body["tools"] = tools
    return body | _common(spec, engine, fields)


def generate_of(spec: Spec, engine: Engine, fields: Fields) -> dict[str, object]:
    """The engine's chat of `/api/generate`: its prompt as a message of the user."""
    content = _with_images(fields, fields.text("prompt") or "")
    messages: list[Message] = [{"role": "user", "content": content}]
    if system := fields.text("system"):
        messages.insert(0, {"role": "system", "content": system})
    fields.ignore("raw")
    return {"messages": messages, **_common(spec, engine, fields)}


def raw_of(spec: Spec, engine: Engine, fields: Fields) -> dict[str, object]:
    """The engine's completions of `/api/generate` with `raw`: the prompt as it is, without a template."""
    fields.ignore("raw", *HINTS)
    body: dict[str, object] = {"prompt": fields.needed("prompt"), **_options(spec, engine, fields)}
    fields.ignore_empty()
    fields.close("is not supported together with `raw`")
    return body


def check_load(spec: Spec, engine: Engine, fields: Fields, *, chat: bool) -> None:
    """What a request without messages or prompt says beside. Raises InvalidRequest as it would with them, not
    a step later."""
    if chat:
        for tool in fields.objects("tools"):
            _tool(tool)
    else:
        fields.text("system")
        fields.ignore("raw")
    _common(spec, engine, fields)


def embed_of(spec: Spec, engine: Engine, fields: Fields, name: str) -> tuple[dict[str, object], int | None]:
    """The engine's embeddings of the texts in field `name`, and how many numbers of each are wanted."""
    texts = fields.texts(name)
    if texts is None:
        refuse(name, "is missing")
    dimensions = fields.whole("dimensions", least=1)
    _options(spec, engine, fields)
    fields.ignore(*HINTS)
    fields.close()
    return {"input": texts, "encoding_format": "float"}, dimensions


def _common(spec: Spec, engine: Engine, fields: Fields) -> dict[str, object]:
    """What chats and generations have in common; refuses what is left."""
    fields.ignore(*HINTS)
    body = {**_options(spec, engine, fields), **_format(fields), **_think(engine, fields)}
    if fields.flag("logprobs"):
        refuse("logprobs", "is not supported here")
    if fields.take("context"):  # of an earlier answer in Ollama's old API; ours have none
        refuse("context", "is not supported: send the conversation to /api/chat")
    fields.ignore_empty()
    fields.close()
    return body


# -- messages -------------------------------------------------------------------------------------------


def _messages(fields: Fields) -> list[Message]:
    found: list[Message] = []
    open_calls: list[tuple[str, str]] = []  # id and name, of calls that have no result yet
    for message in fields.objects("messages"):
        role = message.needed("role")
        content = message.text("content") or ""
        said: Message = {"role": role, "content": _with_images(message, content)}
        if role == "assistant":
            if thought := message.text("thinking"):
                said["reasoning_content"] = thought
            calls = [_call(call, f"call_{len(found)}_{place}") for place, call in _numbered(message)]
            if calls:
                said["tool_calls"] = calls
                open_calls = [(call["id"], call["function"]["name"]) for call in calls]
        elif role == "tool":
            said["tool_call_id"] = _answered(message, open_calls)
        elif role not in ("user", "system"):
            refuse(message.path("role"), "has to be `system`, `user`, `assistant` or `tool`")
        message.close()
        found.append(said)
    return found


def _numbered(message: Fields) -> Iterator[tuple[int, Fields]]:
    return enumerate(message.objects("tool_calls"))


def _call(call: Fields, usual: str) -> Message:
    function = call.inner("function")
    if function is None:
        refuse(call.path("function"), "is missing")
    arguments = orjson.dumps(function.mapping("arguments") or {}).decode()
    name = function.needed("name")
    function.ignore("index", "description")
    function.close()
    call.ignore("type", "index")
    made = {"id": call.text("id") or usual, "type": "function"}
    call.close()
    return {**made, "function": {"name": name, "arguments": arguments}}


def _answered(message: Fields, open_calls: list[tuple[str, str]]) -> str:
    """The id of the call whose result this is: it says so, or names the tool, or it is the next one."""
    said = message.text("tool_call_id")
    name = message.text("tool_name") or message.text("name")
    for place, (call, tool) in enumerate(open_calls):
        if call == said or (said is None and name in (None, tool)):
            return open_calls.pop(place)[0]
    return said or "call"


def _with_images(fields: Fields, text: str) -> str | list[Message]:
    images = fields.texts("images")
    if not images:
        return text
    parts: list[Message] = [{"type": "text", "text": text}] if text else []
    for image in images:
        kind = next((kind for start, kind in _IMAGES.items() if image.startswith(start)), "png")
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{image}"}})
    return parts


def _tool(tool: Fields) -> Message:
    if (kind := tool.text("type")) not in (None, "function"):
        refuse(tool.path("type"), f"{kind!r} is not supported: it has to be `function`")
    function = tool.mapping("function")
    if function is None or not isinstance(function.get("name"), str):
        refuse(tool.path("function"), "has to be an object with a name")
    tool.close()
    return {"type": "function", "function": function}


# -- options, format, thinking --------------------------------------------------------------------------


def _options(spec: Spec, engine: Engine, fields: Fields) -> dict[str, object]:
    options = fields.inner("options")
    if options is None:
        return {}
    body: dict[str, object] = {}
    for name, kind in (*_SAME.items(), *_ENGINES.items()):
        value = options.whole(name) if kind is int else options.number(name)
        if value is None:
            continue
        field = "n_keep" if name == "num_keep" else name
        if name in _ENGINES and field not in engine.chat_fields:
            refuse(options.path(name), f"is not supported by the engine {engine.type}")
        body[field] = value
    if (most := options.whole("num_predict")) is not None and most >= 0:  # below: as many as there is room
        body["max_tokens"] = most
    if stops := options.texts("stop"):
        body["stop"] = stops
    asked, context = options.whole("num_ctx"), spec.parameters.get("context")
    if asked is not None and isinstance(context, int) and asked > context > 0:
        refuse(options.path("num_ctx"), f"is above the context of {context} that is configured for the model")
    options.ignore(*LOADING)
    options.close()
    return body


def _format(fields: Fields) -> dict[str, object]:
    shape = fields.take("format")
    if shape is None or shape == "":
        return {}
    if shape == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(shape, dict):
        refuse("format", "has to be `json` or a JSON schema")
    schema = {"name": "answer", "schema": shape, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _think(engine: Engine, fields: Fields) -> dict[str, object]:
    think = fields.take("think")
    if think is None:
        return {}
    if not isinstance(think, bool) and think not in _LEVELS:
        refuse("think", f"has to be true, false or one of {', '.join(_LEVELS)}")
    if "chat_template_kwargs" not in engine.chat_fields:
        refuse("think", f"is not supported by the engine {engine.type}")
    words: dict[str, object] = {"enable_thinking": think is not False}
    if isinstance(think, str):
        words["reasoning_effort"] = think
    return {"chat_template_kwargs": words}
