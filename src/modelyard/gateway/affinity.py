"""The beginning of a request, as a number: requests that begin alike may go to the same replica, whose cache
has that beginning already.

Used by `serve` for the models whose policy asks for it; no other request pays for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from zlib import crc32

import orjson

LONGEST = 1024  # bytes of text that count
_TEXTS = ("prompt", "input", "content", "query")


def prefix_of(body: bytes) -> int:
    """What the text of an engine's request begins with, as a hash: of a chat all up to its first message of
    the user, so that the turns of one chat stay together, and LONGEST bytes at most."""
    value = orjson.loads(body)
    head = b""
    for text in _texts(value):
        head += text.encode() + b"\0"
        if len(head) >= LONGEST:
            break
    return crc32(head[:LONGEST])


def _texts(value: Mapping[str, object]) -> Iterator[str]:
    messages = value.get("messages")
    if not isinstance(messages, list):
        yield next((str(value[name]) for name in _TEXTS if name in value), "")
        return
    for message in messages:
        if not isinstance(message, dict):
            return
        content = message.get("content")
        yield content if isinstance(content, str) else orjson.dumps(content).decode()
        if message.get("role") == "user":
            return
