"""The little that a relay needs of a JSON request: its model, whether it streams, and another name for it.

Called by the gateway for every inference request. Everything else in a body passes through byte for byte;
nothing here writes JSON except the one name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson

from modelyard.errors import InvalidRequest

__all__ = ["Head", "parse", "replace_model"]

_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_STRINGS = re.compile(_STRING, re.DOTALL)
_VALUE = _SPACE + b":" + _SPACE + rb"(" + _STRING + rb"|[a-z0-9+.E-]++)"
# A quote behind a backslash is inside a string, and a backslash is nowhere else: what matches is a key.
_PLAIN_KEY = re.compile(rb'(?<!\\)"model"' + _VALUE, re.DOTALL)
_ESCAPED_KEY = re.compile(
    rb'(?<!\\)"(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"' + _VALUE,
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Head:
    """What decides about a request; `value` is the whole body."""

    model: str | None
    stream: bool
    value: dict[str, object]


def parse(body: bytes) -> Head:
    """The head of a JSON body.

    Raises InvalidRequest when it is no JSON object (with line and column where it breaks), or `model` or
    `stream` has the wrong type. An absent or null `model` is None.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if not body.strip():
            raise InvalidRequest("The body is empty; send a JSON object.") from None
        try:
            body.decode()
        except UnicodeDecodeError as wrong:
            raise InvalidRequest(
                f"The body is not UTF-8: byte {wrong.start + 1} is wrong; send UTF-8."
            ) from None
        raise InvalidRequest(
            f"The body is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}."
        ) from None
    if type(value) is not dict:
        raise InvalidRequest(f"The body is a JSON {_kind(value)}; send an object.")
    model = value.get("model")
    if model is not None and type(model) is not str:
        raise InvalidRequest(f"`model` is a JSON {_kind(model)}; send a string.", param="model")
    stream = value.get("stream")
    if stream is not None and type(stream) is not bool:
        raise InvalidRequest(f"`stream` is a JSON {_kind(stream)}; send true or false.", param="stream")
    return Head(model, stream is True, value)


def _kind(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def replace_model(body: bytes, name: str) -> bytes:
    """The body with the value of its top-level `model` replaced, or put in, all other bytes as they were.

    The body must be one that `parse` accepts. Every top-level `model` is replaced when there are several:
    parsers differ in which one counts.
    """
    new = orjson.dumps(name)
    escaped = b"\\u006" in body
    if not escaped:
        first = body.find(b'"model"')
        # The usual request: the first key, and no second one anywhere.
        if body[:first].strip() == b"{" and body.find(b'"model"', first + 7) < 0:
            match = _PLAIN_KEY.match(body, first)
            if match is not None:
                return b"".join((body[: match.start(1)], new, body[match.end(1) :]))
    pieces: list[bytes] = []
    copied = scanned = depth = 0
    for match in (_ESCAPED_KEY if escaped else _PLAIN_KEY).finditer(body):
        between = _STRINGS.sub(b"", body[scanned : match.start()])
        depth += between.count(b"{") + between.count(b"[") - between.count(b"}") - between.count(b"]")
        scanned = match.end()
        if depth == 1:
            start, end = match.span(1)
            pieces += (body[copied:start], new)
            copied = end
    if not pieces:
        inside = body.index(b"{") + 1
        comma = b"" if body[inside:].lstrip().startswith(b"}") else b","
        return b'%b"model":%b%b%b' % (body[:inside], new, comma, body[inside:])
    pieces.append(body[copied:])
    return b"".join(pieces)
