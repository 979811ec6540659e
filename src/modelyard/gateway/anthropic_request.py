"""A request of Anthropic's Messages API as the body of an engine's chat completions.

Called by `anthropic`. Every field is honoured, refused by name, or one of HINTS, which change no answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from modelyard.engines.base import Engine
from modelyard.gateway.fields import Fields, refuse

HINTS = (
    *("metadata", "service_tier", "cache_control", "inference_geo", "speed", "user_profile_id"),
    "diagnostics",
)
BLOCK_HINTS = ("cache_control", "citations", "signature", "caller")  # the last three: of earlier answers
TOOL_HINTS = ("cache_control", "eager_input_streaming")
_PREFILL = "has to end with a message of the user: an answer that the client began is not supported"

Message = dict[str, Any]


def chat_of(engine: Engine, fields: Fields, *, counted: bool = False) -> dict[str, object]:
    """The chat, without the model's name and `stream`. `counted`: only its tokens are asked for, and
    `max_tokens` may be missing. Raises InvalidRequest."""
    fields.ignore("model", "stream", *HINTS)
    body: dict[str, object] = {"messages": [*_system(fields), *_messages(fields)]}
    most = fields.whole("max_tokens", least=1)
    if most is not None:
        body["max_tokens"] = most
    elif not counted:
        refuse("max_tokens", "is missing")
    for name in ("temperature", "top_p"):
        if (number := fields.number(name)) is not None:
            body[name] = number
    if (top_k := fields.whole("top_k", least=0)) is not None:
        _needs(engine, "top_k", "top_k")
        body["top_k"] = top_k
    if stops := fields.texts("stop_sequences"):
        body["stop"] = stops
    body |= _tools(fields)
    body |= _thinking(engine, fields)
    body |= _output(fields)
    _edits(fields)
    fields.close()
    return body


def hides_thinking(value: dict[str, object]) -> bool:
    """Whether the client wants no text of what the model thinks."""
    thinking = value.get("thinking")
    return isinstance(thinking, dict) and thinking.get("display") == "omitted"


def _needs(engine: Engine, field: str, path: str) -> None:
    if field not in engine.chat_fields:
        refuse(path, f"is not supported by the engine {engine.type}")


# -- messages -------------------------------------------------------------------------------------------


def _system(fields: Fields) -> Iterator[Message]:
    text = _plain(fields, "system")
    if text:
        yield {"role": "system", "content": text}


def _plain(fields: Fields, name: str) -> str:
    """A string, or the texts of a list of text blocks."""
    value = fields.take(name)
    if value is None or isinstance(value, str):
        return value or ""
    texts = []
    for block in fields.objects_of(name, value):
        if block.needed("type") != "text":
            refuse(block.path("type"), "has to be `text` here")
        texts.append(block.needed("text"))
        block.ignore(*BLOCK_HINTS)
        block.close()
    return "\n".join(texts)


def _messages(fields: Fields) -> list[Message]:
    found: list[Message] = []
    role = ""
    for message in fields.objects("messages"):
        role = message.needed("role")
        if role == "user":
            found += _said_by_user(message)
        elif role == "assistant":
            found.append(_said_by_model(message))
        elif role == "system":
            found.append({"role": "system", "content": _plain(message, "content")})
        else:
            refuse(message.path("role"), "has to be `user`, `assistant` or `system`")
        message.close()
    if not found:
        refuse("messages", "is missing, or empty")
    if role == "assistant":
        refuse("messages", _PREFILL)
    return found


def _blocks(message: Fields, *, needed: bool = True) -> Iterator[Fields]:
    """The blocks of a message; a string is one of text."""
    value = message.take("content")
    if value is None:
        if not needed:
            return
        refuse(message.path("content"), "is missing")
    blocks = [{"type": "text", "text": value}] if isinstance(value, str) else value
    path = message.path("content")
    if not isinstance(blocks, list):
        refuse(path, "has to be a string or a list of blocks")
    for number, block in enumerate(blocks):
        yield Fields(block, f"{path}[{number}]")


def _said_by_user(message: Fields) -> list[Message]:
    """Results of tools are messages of their own, in the order of the blocks."""
    found: list[Message] = []
    parts: list[Message] = []

    def flush() -> None:
        if parts:
            found.append({"role": "user", "content": _joined(parts)})
            parts.clear()

    for block in _blocks(message):
        kind = block.needed("type")
        if kind == "tool_result":
            flush()
            found.append(_result(block))
        else:
            parts.append(_part(block, kind))
    flush()
    return found


def _joined(parts: list[Message]) -> str | list[Message]:
    """Text alone as one string: not every chat template takes a list."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return list(parts)


def _part(block: Fields, kind: str) -> Message:
    """One block of this type, that a user may send."""
    part: Message
    if kind == "text":
        part = {"type": "text", "text": block.needed("text")}
    elif kind == "image":
        part = {"type": "image_url", "image_url": {"url": _image(block)}}
    elif kind == "document":
        part = {"type": "text", "text": _document(block)}
    else:
        refuse(block.path("type"), f"{kind!r} is not supported here")
    block.ignore(*BLOCK_HINTS)
    block.close()
    return part


def _source(block: Fields) -> tuple[Fields, str]:
    source = block.inner("source")
    if source is None:
        refuse(block.path("source"), "is missing")
    return source, source.needed("type")


def _image(block: Fields) -> str:
    source, kind = _source(block)
    if kind == "base64":
        url = f"data:{source.needed('media_type')};base64,{source.needed('data')}"
    elif kind == "url":
        url = source.needed("url")
    else:
        refuse(source.path("type"), f"{kind!r} is not supported: send the image as base64 or a URL")
    source.close()
    return url


def _document(block: Fields) -> str:
    source, kind = _source(block)
    if kind != "text":
        refuse(source.path("type"), f"{kind!r} is not supported: send a document as text")
    source.ignore("media_type")
    texts = [block.text("title"), block.text("context"), source.needed("data")]
    source.close()
    citations = block.inner("citations")
    if citations is not None and citations.flag("enabled"):
        refuse(citations.path("enabled"), "is not supported here")
    return "\n".join(text for text in texts if text)


def _result(block: Fields) -> Message:
    """The result of a tool. That it failed is said in its text: the engines' chat has no field for that."""
    call = block.needed("tool_use_id")
    failed = block.flag("is_error")
    parts = [_part(inner, inner.needed("type")) for inner in _blocks(block, needed=False)]
    block.ignore(*BLOCK_HINTS)
    block.close()
    if failed:
        parts.insert(0, {"type": "text", "text": "Error:"})
    return {"role": "tool", "tool_call_id": call, "content": _joined(parts)}


def _said_by_model(message: Fields) -> Message:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Message] = []
    for block in _blocks(message):
        kind = block.needed("type")
        if kind == "text":
            texts.append(block.needed("text"))
        elif kind == "thinking":
            thoughts.append(block.needed("thinking"))
        elif kind == "tool_use":
            arguments = orjson.dumps(block.mapping("input") or {}).decode()
            function = {"name": block.needed("name"), "arguments": arguments}
            calls.append({"id": block.needed("id"), "type": "function", "function": function})
        else:
            refuse(block.path("type"), f"{kind!r} is not supported in a message of the model")
        block.ignore(*BLOCK_HINTS)
        block.close()
    said: Message = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        said["reasoning_content"] = "\n".join(thoughts)
    if calls:
        said["tool_calls"] = calls
    return said


# -- tools, thinking, output ----------------------------------------------------------------------------


def _tools(fields: Fields) -> dict[str, object]:
    """`tools`, and `tool_choice` in words that every engine knows: one tool alone is asked for by showing the
    model no other."""
    tools = [_tool(tool) for tool in fields.objects("tools")]
    choice = fields.inner("tool_choice")
    if choice is None:
        return {"tools": tools} if tools else {}
    kind = choice.needed("type")
    alone = choice.flag("disable_parallel_tool_use")
    words = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}
    if kind not in words:
        refuse(choice.path("type"), "has to be `auto`, `any`, `tool` or `none`")
    if kind == "tool":
        name = choice.needed("name")
        tools = [tool for tool in tools if tool["function"]["name"] == name]
        if not tools:
            refuse(choice.path("name"), f"{name[:80]!r} is none of `tools`")
    choice.close()
    if not tools:
        if kind == "any":
            refuse("tool_choice", "asks for a call of a tool, but there are no `tools`")
        return {}
    made: dict[str, object] = {"tools": tools, "tool_choice": words[kind]}
    return made | {"parallel_tool_calls": False} if alone else made


def _tool(tool: Fields) -> Message:
    if (kind := tool.text("type")) not in (None, "custom"):
        refuse(tool.path("type"), f"{kind!r} is a tool of Anthropic's servers and not supported here")
    schema = tool.mapping("input_schema")
    if schema is None:
        refuse(tool.path("input_schema"), "is missing")
    function: Message = {"name": tool.needed("name"), "parameters": schema}
    if (description := tool.text("description")) is not None:
        function["description"] = description
    if (strict := tool.flag("strict")) is not None:
        function["strict"] = strict
    tool.ignore(*TOOL_HINTS)
    tool.close()
    return {"type": "function", "function": function}


def _thinking(engine: Engine, fields: Fields) -> dict[str, object]:
    thinking = fields.inner("thinking")
    if thinking is None:
        return {}
    kind = thinking.needed("type")
    if kind not in ("enabled", "adaptive", "disabled"):
        refuse(thinking.path("type"), "has to be `enabled`, `adaptive` or `disabled`")
    found: dict[str, object] = {}
    if kind != "adaptive":
        _needs(engine, "chat_template_kwargs", "thinking")
        found["chat_template_kwargs"] = {"enable_thinking": kind == "enabled"}
    if (budget := thinking.whole("budget_tokens", least=0)) is not None:
        _needs(engine, "thinking_budget_tokens", thinking.path("budget_tokens"))
        found["thinking_budget_tokens"] = budget
    thinking.ignore("display")
    thinking.close()
    return found


def _output(fields: Fields) -> dict[str, object]:
    """`output_config`, and its older form `output_format`. How much effort to make is a hint."""
    config = fields.inner("output_config")
    shape = fields.inner("output_format")
    if config is not None:
        config.ignore("effort")
        shape = config.inner("format") or shape
        config.close()
    if shape is None:
        return {}
    if shape.needed("type") != "json_schema":
        refuse(shape.path("type"), "has to be `json_schema`")
    schema = shape.mapping("schema")
    if schema is None:
        refuse(shape.path("schema"), "is missing")
    shape.close()
    schema_of = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema_of}}


def _edits(fields: Fields) -> None:
    """`context_management` may say what is done anyway: keep all that was thought."""
    management = fields.inner("context_management")
    if management is None:
        return
    for edit in management.objects("edits"):
        if not edit.needed("type").startswith("clear_thinking") or edit.take("keep") != "all":
            refuse(edit.path("type"), "is not supported here")
        edit.close()
    management.close()
