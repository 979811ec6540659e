"""The header of a safetensors file: whether its tensors lie in the file, and apart from each other; how many
elements of which type they have.

Used by `formats`. The header alone is read, and never more than `MOST` bytes of it; no count is trusted.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from math import prod
from typing import BinaryIO, TypeGuard

from modelyard.errors import BadFile

MOST = 8 << 20  # bytes of a header: some 75,000 tensors
_MOST_DIMENSIONS = 16
_SIZE_END = 8

# Bits of an element; of a newer type only the place is checked.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64,
    "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


def header_length(start: bytes) -> int | None:
    """The length that the beginning of a file gives its header; None when it is no safetensors file."""
    if len(start) < _SIZE_END + 1 or start[_SIZE_END : _SIZE_END + 1] != b"{":
        return None
    length: int = struct.unpack_from("<Q", start)[0]
    # Text that has a brace there gives a length that no header has: at least one of its bytes is not zero.
    return length if length < 1 << 40 else None


def check_safetensors(file: BinaryIO) -> dict[str, object]:
    """What its header tells: `parameters`, the elements of its tensors; `bytes` of them; `dtypes`, elements
    by type. Raises BadFile for a file that is damaged or not whole."""
    size = file.seek(0, 2)
    file.seek(0)
    length = header_length(file.read(_SIZE_END + 1))
    if length is None:
        raise BadFile("this is not a safetensors file")
    if length > MOST:
        raise BadFile(
            f"its safetensors header claims {length} bytes, above the {MOST} that are read; it is damaged"
        )
    if length > size - _SIZE_END:
        missing = length - (size - _SIZE_END)
        raise BadFile(
            f"the file ends within its safetensors header, {missing} bytes are missing; fetch it again"
        )
    file.seek(_SIZE_END)
    tensors = _tensors(file.read(length))
    taken = _check_places(tensors, size - _SIZE_END - length)
    return {"kind": "safetensors", "bytes": taken, **_counted(tensors)}


def _tensors(text: bytes) -> dict[str, object]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise BadFile("its safetensors header is no JSON; the file is damaged") from None
    if not isinstance(header, dict):
        raise BadFile("its safetensors header is no JSON object; the file is damaged")
    header.pop("__metadata__", None)
    return header


def _check_places(tensors: dict[str, object], data: int) -> int:
    """Each tensor where there is data, and none in another one. Returns where the last one ends."""
    places = sorted((*_place(name, entry), name) for name, entry in tensors.items())
    taken, last = 0, ""
    for begin, end, name in places:
        if begin < taken:
            raise BadFile(f"the tensors {_short(last)} and {_short(name)} overlap; the file is damaged")
        taken, last = max(taken, end), name
    if taken > data:
        raise BadFile(
            f"the file holds {data} of {taken} bytes of its tensors, {taken - data} are missing; "
            "fetch it again"
        )
    return taken


def _counted(tensors: dict[str, object]) -> dict[str, object]:
    """Elements of tensors whose places are right, of the types that are known."""
    dtypes: dict[str, int] = {}
    for entry in tensors.values():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if isinstance(entry, dict) and isinstance(dtype, str) and dtype in _BITS:
            dtypes[dtype] = dtypes.get(dtype, 0) + prod(entry["shape"])
    return {"parameters": sum(dtypes.values()), "dtypes": dtypes}


def _place(name: str, entry: object) -> tuple[int, int]:
    """Where a tensor begins and ends."""
    if not isinstance(entry, dict):
        raise BadFile(f"the tensor {_short(name)} is not described; the file is damaged")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _whole_numbers(shape) or len(shape) > _MOST_DIMENSIONS:
        raise BadFile(f"the tensor {_short(name)} has no shape; the file is damaged")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadFile(f"the tensor {_short(name)} has no place; the file is damaged")
    bits = _BITS.get(entry["dtype"]) if isinstance(entry.get("dtype"), str) else None
    needed = -(-prod(shape) * bits // 8) if bits is not None else None
    has = offsets[1] - offsets[0]
    if needed is not None and needed != has:
        raise BadFile(f"the tensor {_short(name)} needs {needed} bytes and has {has}; the file is damaged")
    return offsets[0], offsets[1]


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 64 for one in value)


def _short(name: str) -> str:
    return repr(name[:100])
