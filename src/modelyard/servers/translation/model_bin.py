"""What a `model.bin` of CTranslate2 tells without its weights: their types and shapes, and where it ends.

Standard library only. Reads a few hundred names and sizes, whatever the file's size.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO

from modelyard.errors import BadFile

VERSIONS = frozenset({4, 5, 6})
NAME = b"\x10\x00TransformerSpec\x00"
"""What follows the version of one that has an encoder and a decoder."""
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
_MOST = 100_000  # tensors, and other names for them
_EMBEDDINGS = "decoder/embeddings/weight"
_POSITIONS = ("encoder/position_encodings/encodings", "decoder/position_encodings/encodings")
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/")


@dataclass(frozen=True, slots=True)
class Facts:
    """`type` is that of most of its bytes; `end` is where it ends, and another thing may begin. `config`
    names what its shapes tell as a config.json of Hugging Face does."""

    type: str
    end: int
    config: dict[str, int]


def is_one(start: bytes) -> bool:
    """Whether a file that begins so is a model of CTranslate2 that translates."""
    return start[4:].startswith(NAME) and int.from_bytes(start[:4], "little") in VERSIONS


def read(file: BinaryIO) -> Facts:
    """The facts of one that is whole. Raises BadFile, which names no path."""
    try:
        return _read(file)
    except (struct.error, ValueError, IndexError, KeyError):
        raise BadFile("this is a model for CTranslate2 that is damaged, or not whole") from None


def _read(file: BinaryIO) -> Facts:
    file.seek(0)
    if not is_one(file.read(4 + len(NAME))):
        raise KeyError
    shapes: dict[str, tuple[int, ...]] = {}
    types: Counter[str] = Counter()
    (_revision,) = _unpack(file, "<I")
    for _ in range(_count(file)):
        name = _text(file)
        (rank,) = _unpack(file, "<B")
        shapes[name] = _unpack(file, f"<{rank}I")
        kind, size = _unpack(file, "<BI")
        types[_TYPES[kind]] += size
        file.seek(size, 1)
    for _ in range(_count(file)):
        alias, name = _text(file), _text(file)
        shapes[alias] = shapes.get(name, ())
    end = file.tell()
    if end > file.seek(0, 2):
        raise IndexError
    return Facts(types.most_common(1)[0][0], end, _config(shapes))


def _config(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    words, width = shapes[_EMBEDDINGS]
    layers = {layer.groups() for name in shapes if (layer := _LAYER.match(name))}
    found = {"vocab_size": words, "d_model": width}
    for side in ("encoder", "decoder"):
        found[f"{side}_layers"] = sum(one == side for one, _ in layers)
        found[f"{side}_ffn_dim"] = shapes[f"{side}/layer_0/ffn/linear_0/weight"][0]
    positions = [shapes[name][0] for name in _POSITIONS if name in shapes]
    return found | ({"max_position_embeddings": min(positions)} if positions else {})


def _count(file: BinaryIO) -> int:
    (count,) = _unpack(file, "<I")
    if count > _MOST:
        raise IndexError
    return int(count)


def _text(file: BinaryIO) -> str:
    (size,) = _unpack(file, "<H")
    return file.read(size)[:-1].decode()


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))
