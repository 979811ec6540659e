"""A GGUF file in several, as llama-gguf-split makes them: `STEM-00001-of-00003.gguf`, …"""

from __future__ import annotations

import struct
from pathlib import Path

from engines.gguf_file import text
from modelyard.engines.gguf import TYPES, Tensor, read_header

_ALIGNMENT = 32
_NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}


def split_gguf(whole: Path, folder: Path, count: int, stem: str = "model") -> list[Path]:
    """The parts, with about as many tensors each; the first has all key-values."""
    header = read_header(whole)
    content = whole.read_bytes()
    data = header.end - max(tensor.offset + tensor.bytes for tensor in header.tensors)
    kept = [content[begin:end] for begin, end in header.spans.values()]
    each = -(-len(header.tensors) // count)
    paths = []
    for number in range(count):
        tensors = header.tensors[number * each : (number + 1) * each]
        marks = [
            text("split.no") + struct.pack("<IH", 2, number),
            text("split.count") + struct.pack("<IH", 2, count),
            text("split.tensors.count") + struct.pack("<Ii", 5, len(header.tensors)),
        ]
        fields = [*(kept if number == 0 else ()), *marks]
        bodies = [content[data + one.offset :][: one.bytes] for one in tensors]
        paths.append(folder / f"{stem}-{number + 1:05}-of-{count:05}.gguf")
        paths[-1].write_bytes(_file(fields, tensors, bodies))
    return paths


def _file(fields: list[bytes], tensors: tuple[Tensor, ...], bodies: list[bytes]) -> bytes:
    infos, data = b"", b""
    for tensor, body in zip(tensors, bodies, strict=True):
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        infos += text(tensor.name) + shape + struct.pack("<IQ", _NUMBERS[tensor.type], len(data))
        data += body + bytes(-len(body) % _ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields) + infos
    return head + bytes(-len(head) % _ALIGNMENT) + data
