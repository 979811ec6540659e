"""Small GGUF files, written byte by byte, for tests of what reads them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import prod

TYPES = {"u32": (4, "I"), "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q")}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def field(name: str, value: object) -> bytes:
    """One key-value: a text, a truth value, a whole number, or a list of texts or numbers."""
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return text(name) + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return text(name) + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return text(name) + struct.pack("<If", 6, value)
    assert isinstance(value, list)
    if value and isinstance(value[0], str):
        body = b"".join(text(item) for item in value)
        return text(name) + struct.pack("<IIQ", 9, 8, len(value)) + body
    return text(name) + struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)


def tensor(name: str, shape: Sequence[int], kind: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, 0)


def gguf(
    fields: Mapping[str, object], tensors: Sequence[tuple[str, Sequence[int], int]] = (), version: int = 3
) -> bytes:
    """A file with these key-values and f32 tensors, and zeros for the tensors' data."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields))
    body = b"".join(field(name, value) for name, value in fields.items())
    data = max((4 * prod(shape) for _, shape, kind in tensors if kind == 0), default=0)
    # The reader refuses more fields than the file could hold; real files have data behind the header.
    return head + body + b"".join(tensor(*item) for item in tensors) + bytes(64 + data)
