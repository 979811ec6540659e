"""Quantization of GGUF files: which tool does it, which types it makes, and our own where there is no other.

    python -m modelyard.store.quantize SOURCE TARGET TYPE

`llama-quantize` on PATH is preferred. Else this module runs in a process of its own, with the codecs of the
`gguf` package: slab by slab, so that its memory does not grow with the model. It writes `DONE TOTAL` in bytes
of the source to its output, and ends when its input closes: then nobody waits for it any more.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from modelyard.engines.gguf import TYPES, GgufHeader, Tensor, read_header
from modelyard.errors import BadGguf

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROGRAM = "llama-quantize"
# What a `general.file_type` is called: llama.cpp's own numbers.
FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11,
    "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18,
    "iq4_nl": 25, "iq4_xs": 30, "bf16": 32,
}  # fmt: skip
OWN_TYPES = ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
INSTALL = f"install llama.cpp so that {PROGRAM} is on PATH"
SMALL = 1024  # weights: a tensor of fewer is kept as it is, in f32
SLAB = 1 << 20  # weights that are in memory at a time; a multiple of every block
_ROW = 8192
_UNQUANTIZED = ("f32", "f16", "bf16")
_NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
_UINT32 = 4
# Tensors that llama.cpp keeps whatever the type is: routers, positions, states.
_KEPT = ("ffn_gate_inp", "position_embd", "token_types", "ssm_conv1d", "time_mix_", "attn_rel_b", "altup")
_ALIGNMENT = 32
_FROM = "modelyard.quantized_from"


@dataclass(frozen=True, slots=True)
class Tool:
    """What quantizes here. `version` tells two of them apart that may make different bytes."""

    name: str
    version: str
    program: str = ""

    def argv(self, source: Path, target: Path, type: str, before: str) -> list[str]:
        """Its command; `before` is the type of the source."""
        if not self.program:
            return [sys.executable, "-m", "modelyard.store.quantize", str(source), str(target), type]
        allow = ["--allow-requantize"] if is_quantized(before) else []
        mark = ["--override-kv", f"{_FROM}=str:{before}"]
        return [self.program, *allow, *mark, str(source), str(target), type.upper()]


def tool_for(type: str) -> Tool | None:
    """What makes files of this type here; None when nothing does. Looks at PATH."""
    program = shutil.which(PROGRAM)
    if program is not None:
        stat = os.stat(program)
        return Tool(PROGRAM, _digest(program, stat.st_size, stat.st_mtime_ns), program)
    if type not in OWN_TYPES:
        return None
    try:
        return Tool("gguf", version("gguf"))
    except PackageNotFoundError:
        return None


@lru_cache(maxsize=8)
def _digest(program: str, size: int, modified: int) -> str:
    """It says no version of its own."""
    return sha256(Path(program).read_bytes()).hexdigest()[:12]


def problem(type: str, parts: int = 1) -> str | None:
    """Why no file of this type can be made here of one in so many `parts`, with what to install; None when it
    can."""
    if type not in FILE_TYPES:
        near = get_close_matches(type, FILE_TYPES, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{type!r} is no type of quantization{hint} (known: {', '.join(FILE_TYPES)})"
    tool = tool_for(type)
    if parts > 1 and (tool is None or not tool.program):
        return f"a model in {parts} files is quantized by {PROGRAM} alone: {INSTALL}, or name a whole one"
    if tool is not None:
        return None
    if type in OWN_TYPES:
        return f"needs a tool: pip install 'modelyard[quantize]', or {INSTALL}"
    return f"{type} is made by {PROGRAM} alone: {INSTALL}, or take one of {', '.join(OWN_TYPES)}"


def type_of(header: Mapping[str, object]) -> str:
    """What the header of a file says that most of its weights are; empty where it says nothing known."""
    number = header.get("general.file_type")
    return next((name for name, known in FILE_TYPES.items() if known == number), "")


def main_type(header: GgufHeader) -> str:
    """The type of most of a file's weights."""
    weights: dict[str, int] = {}
    for tensor in header.tensors:
        weights[tensor.type] = weights.get(tensor.type, 0) + prod(tensor.shape)
    return max(weights, key=lambda name: weights[name], default="f32")


def is_quantized(type: str) -> bool:
    """Whether weights of this type are quantized already: to quantize them again loses more."""
    return type not in _UNQUANTIZED


def requantized_from(header: Mapping[str, object]) -> str:
    """What a file that was made here was before, by its header's facts, if that was quantized already."""
    before = str(header.get(_FROM, ""))
    return before if before and is_quantized(before) else ""


def planned(header: GgufHeader, type: str) -> tuple[list[Tensor], list[str]]:
    """The tensors as our own tool writes them, with their places in the new file; and what it has to keep in
    another type than it was told, in words."""
    tensors, remarks, offset = [], [], 0
    alignment = _alignment(header)
    for tensor in header.tensors:
        wanted = _type_of(tensor, type)
        if wanted is None:
            wanted = "f16"
            block = TYPES[_NUMBERS[type]][1]
            remarks.append(
                f"{tensor.name} stays {wanted}: its rows of {tensor.shape[0]} do not divide by {block}"
            )
        _, block, size = TYPES[_NUMBERS[wanted]]
        tensors.append(
            Tensor(tensor.name, tensor.shape, wanted, -(-prod(tensor.shape) // block) * size, offset)
        )
        offset += -(-tensors[-1].bytes // alignment) * alignment
    return tensors, remarks


def likely_bytes(header: GgufHeader, type: str) -> int:
    """About what the tensors take when llama-quantize chose their types: some of them are larger."""
    _, block, size = TYPES[_NUMBERS[re.sub("_[sml]$", "", type)]]
    weights = sum(prod(tensor.shape) for tensor in header.tensors)
    return int(1.2 * weights / block * size)


def _type_of(tensor: Tensor, type: str) -> str | None:
    """What a tensor becomes; None where its rows do not divide into blocks."""
    if tensor.type in ("i8", "i16", "i32", "i64", "f64"):
        return tensor.type
    if len(tensor.shape) < 2 or prod(tensor.shape) < SMALL:
        return "f32"
    if any(part in tensor.name for part in _KEPT) or not tensor.name.endswith("weight"):
        return tensor.type
    return None if tensor.shape[0] % TYPES[_NUMBERS[type]][1] else type


# -- our own tool ---------------------------------------------------------------------------------------


def quantize(source: Path, target: Path, type: str) -> Iterator[tuple[int, int]]:
    """Write `target`; yields how many bytes of the source's tensors are done, and how many there are. Raises
    BadGguf and OSError."""
    header = read_header(source)
    tensors, _ = planned(header, type)
    done, total = 0, header.tensor_bytes
    with source.open("rb") as old, target.open("wb") as new:
        _write_head(old, new, header, tensors, type)
        begin = header.end - max((tensor.offset + tensor.bytes for tensor in header.tensors), default=0)
        data = new.tell()
        for before, after in zip(header.tensors, tensors, strict=True):
            old.seek(begin + before.offset)
            new.write(bytes(data + after.offset - new.tell()))
            for slab in _slabs(old, before):
                new.write(_converted(slab, before.type, after.type))
                done += len(slab)
                yield done, total
        new.write(bytes(-new.tell() % _alignment(header)))


def _slabs(file: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    _, block, size = TYPES[_NUMBERS[tensor.type]]
    left = tensor.bytes
    while left:
        slab = file.read(min(left, SLAB // block * size))
        if not slab:
            raise BadGguf(f"the file ends within {tensor.name}; fetch it again")
        left -= len(slab)
        yield slab


def _converted(slab: bytes, before: str, after: str) -> bytes:
    """Blocks of one type as blocks of another."""
    if before == after:
        return slab
    import numpy  # noqa: PLC0415 - an extra's, and heavy
    from gguf import GGMLQuantizationType as Type  # noqa: PLC0415
    from gguf.quants import dequantize, quantize  # noqa: PLC0415

    with numpy.errstate(all="ignore"):  # values that a type has no number for
        raw: NDArray[Any] = numpy.frombuffer(slab, dtype=numpy.uint8).reshape(1, -1)
        weights = dequantize(raw, Type(_NUMBERS[before])).reshape(-1)
        rows = weights.reshape(-1, _ROW) if weights.size % _ROW == 0 else weights.reshape(1, -1)
        return quantize(rows, Type(_NUMBERS[after])).tobytes()


def _write_head(
    old: BinaryIO, new: BinaryIO, header: GgufHeader, tensors: Sequence[Tensor], type: str
) -> None:
    """Magic number, key-values and tensors. Key-values are copied as they are, but for those that say how the
    weights are kept."""
    own = {"general.file_type": FILE_TYPES[type], "general.quantization_version": 2}
    kept = [span for name, span in header.spans.items() if name not in own and name != _FROM]
    new.write(b"GGUF" + struct.pack("<IQQ", header.version, len(tensors), len(kept) + len(own) + 1))
    for begin, end in kept:
        _copy(old, new, begin, end)
    for name, value in own.items():
        new.write(_text(name) + struct.pack("<II", _UINT32, value))
    new.write(_text(_FROM) + struct.pack("<I", 8) + _text(main_type(header)))
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        new.write(_text(tensor.name) + shape + struct.pack("<IQ", _NUMBERS[tensor.type], tensor.offset))
    new.write(bytes(-new.tell() % _alignment(header)))


def _copy(old: BinaryIO, new: BinaryIO, begin: int, end: int) -> None:
    old.seek(begin)
    while begin < end:
        begin += new.write(old.read(min(end - begin, SLAB)))


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _alignment(header: GgufHeader) -> int:
    found = header.fields.get("general.alignment", _ALIGNMENT)
    return found if isinstance(found, int) else _ALIGNMENT


def main(argv: Sequence[str]) -> int:
    """The process: 0 when the file is whole, 1 with a word on stderr."""
    source, target, type = Path(argv[0]), Path(argv[1]), argv[2]
    try:
        for done, total in quantize(source, target, type):
            print(done, total, flush=True)
            if select.select([sys.stdin], [], [], 0)[0] and not os.read(0, 1):
                return 1
    except (BadGguf, OSError, ImportError, NotImplementedError) as error:
        print(error.message if isinstance(error, BadGguf) else error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
