"""The header of a GGUF file: its key-values, its tensors, and the bytes that they take.

Called by the store (`facts` of it go into ModelFile.header) and by tests. It reads the header alone, skips
long arrays, and never trusts a count: a damaged or hostile file costs an error, not memory.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

from modelyard.errors import BadGguf

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_MAX_TENSORS = 1 << 16
_MAX_FIELDS = 1 << 16
_MAX_NAME = 1 << 16
_MAX_TEXTS = 64 << 20
_MAX_ITEMS = 1 << 22  # texts in arrays, all together: vocabularies and their merges
_MAX_NUMBERS = 1 << 20  # in short arrays, all together
_MAX_DIMENSIONS = 8
_MAX_LAYERS = 1 << 16
_SMALL_ARRAY = 1024
_SHORT_TEXT = 1024
_BUFFER = 1 << 20
_ALIGNMENT = 32  # where a file names no other

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# ggml's tensor types: number -> (name, elements per block, bytes per block).
TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    9: ("q8_1", 32, 36),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1),
    25: ("i16", 1, 2),
    26: ("i32", 1, 4),
    27: ("i64", 1, 8),
    28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36),
}
BYTES_PER_ELEMENT: Mapping[str, float] = {name: size / block for name, block, size in TYPES.values()}

Value = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; `bytes` is without padding, `offset` is from where all data begins, `type` is ggml's name
    in lower case."""

    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself.

    `fields` holds the key-values that are no arrays, `arrays` the arrays of up to 1,024 numbers (such as
    head counts per layer), `lengths` the length of every array. `end` is the least size of the whole
    file, with the tensors' data; `spans` says where each key-value, with its name, begins and ends.
    """

    version: int
    fields: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    arrays: Mapping[str, tuple[int | float, ...]] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    end: int = 0
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


def read_header(path: Path) -> GgufHeader:
    """The header of a file that holds all its tensors. Raises BadGguf, with the path in its message, and
    OSError."""
    with path.open("rb", buffering=_BUFFER) as file:
        try:
            return whole_header(file)
        except BadGguf as error:
            raise BadGguf(f"{path}: {error.message}") from None


def read_parts(paths: Sequence[Path]) -> GgufHeader:
    """The header of a model in these files, or in one: key-values of the first, tensors of all. Raises as
    `read_header` does, and for files that are not these parts of one model."""
    headers = [read_header(path) for path in paths]
    for number, (path, header) in enumerate(zip(paths, headers, strict=True), 1):
        check_part(header.fields, number, len(paths), str(path))
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    promised = headers[0].fields.get("split.tensors.count", len(tensors))
    if len(tensors) != promised:
        raise BadGguf(
            f"{paths[0]}: its {len(paths)} parts hold {len(tensors)} tensors, and the model has {promised}; "
            "they are not parts of one model: fetch all from one place"
        )
    return replace(headers[0], tensors=tensors, end=sum(header.end for header in headers))


def check_part(fields: Mapping[str, object], number: int, count: int, name: str) -> None:
    """Raises BadGguf for a file `name` that says of itself that it is another part than this, from 1 on."""
    part, of = fields.get("split.no", 0), fields.get("split.count", 0) or 1
    if (part, of) != (number - 1, count):
        expected = f"is expected to be part {number} of {count}" if count > 1 else "stands alone"
        raise BadGguf(
            f"{name} {expected}, and its header says split.no {part}, split.count {of}; a model in several "
            "files needs all of them beside each other, named …-00001-of-00003.gguf and so on"
        )


def whole_header(file: BinaryIO) -> GgufHeader:
    """The header from a seekable binary file that holds all its tensors. Raises BadGguf."""
    header = parse_header(file)
    if (size := file.seek(0, 2)) < header.end:
        raise BadGguf(
            f"the file ends after {size} of {header.end} bytes, {header.end - size} are missing; "
            "fetch it again"
        )
    return header


def parse_header(file: BinaryIO) -> GgufHeader:
    """The header from a seekable binary file that stands at its beginning. Raises BadGguf."""
    reader = _Reader(file)
    magic = reader.take(4, "magic number")
    if magic != MAGIC:
        raise BadGguf("this is not a GGUF file (it does not begin with GGUF); convert the model to GGUF")
    version = reader.number("I", "version")
    if version not in VERSIONS:
        big_endian = version in [known << 24 for known in VERSIONS]
        kind = "a big-endian file" if big_endian else f"GGUF version {version}"
        raise BadGguf(
            f"{kind} is not supported, only little-endian versions 2 and 3; convert the model again"
        )
    tensor_count = reader.count(_MAX_TENSORS, 24, "number of tensors")
    field_count = reader.count(_MAX_FIELDS, 13, "number of fields")
    fields: dict[str, Value] = {}
    arrays: dict[str, tuple[int | float, ...]] = {}
    lengths: dict[str, int] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(field_count):
        begin = reader.at()
        name = reader.text(_MAX_NAME, "field name")
        kind_of = reader.number("I", f"type of {name}")
        if kind_of != _ARRAY:
            fields[name] = reader.value(kind_of, name)
        else:
            lengths[name], small = reader.array(name)
            if small is not None:
                arrays[name] = small
        spans[name] = (begin, reader.at())
    blocks = fields.get(f"{fields.get('general.architecture', '')}.block_count", 0)
    if not isinstance(blocks, int) or not 0 <= blocks <= _MAX_LAYERS:
        raise BadGguf(f"its block_count is {blocks!r}; the file is damaged")
    tensors = tuple(_tensor(reader) for _ in range(tensor_count))
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise BadGguf(f"its general.alignment is {alignment!r}; the file is damaged")
    data = -(-reader.at() // alignment) * alignment
    end = data + max(tensor.offset + tensor.bytes for tensor in tensors) if tensors else reader.at()
    return GgufHeader(version, fields, tensors, arrays, lengths, end, spans)


def facts(header: GgufHeader) -> dict[str, object]:
    """What an estimate needs, small and fit for JSON; this is what a ModelFile carries as its `header`.

    The key-values (long texts left out) and the short arrays as they are; in bytes, under names that no GGUF
    has: `tensors.blocks` (a list, per layer), `tensors.embedding`, `tensors.output` (all others),
    `tensors.total`; and `vocabulary`, the number of tokens.
    """
    blocks: dict[int, int] = {}
    embedding = output = 0
    for tensor in header.tensors:
        layer = _layer(tensor.name)
        if layer is not None:
            blocks[layer] = blocks.get(layer, 0) + tensor.bytes
        elif tensor.name.partition(".")[0] == "token_embd":
            embedding += tensor.bytes
        else:
            output += tensor.bytes
    short = {
        name: value
        for name, value in header.fields.items()
        if not isinstance(value, str) or len(value) <= _SHORT_TEXT
    }
    return {
        **short,
        **{name: list(values) for name, values in header.arrays.items()},
        "tensors.blocks": [blocks[number] for number in sorted(blocks)],
        "tensors.embedding": embedding,
        "tensors.output": output,
        "tensors.total": header.tensor_bytes,
        "vocabulary": header.lengths.get("tokenizer.ggml.tokens", 0),
    }


def trained_context(header: Mapping[str, object]) -> int:
    """Tokens that the model of these facts was trained with; 0 where they do not tell."""
    value = header.get(f"{header.get('general.architecture', '')}.context_length")
    return value if isinstance(value, int) else 0


def _layer(tensor: str) -> int | None:
    """The layer of a tensor, by its name; None outside of all layers. Raises BadGguf."""
    prefix, _, rest = tensor.partition(".")
    if prefix != "blk":
        return None
    number = rest.partition(".")[0]
    if not re.fullmatch("[0-9]{1,5}", number):
        raise BadGguf(f"the tensor {tensor[:_SHORT_TEXT]!r} names no layer; the file is damaged")
    return int(number)


def _tensor(reader: _Reader) -> Tensor:
    name = reader.text(_MAX_NAME, "tensor name")
    _layer(name)
    dimensions = reader.number("I", f"dimensions of {name}")
    if dimensions > _MAX_DIMENSIONS:
        raise BadGguf(f"tensor {name} claims {dimensions} dimensions; the file is damaged")
    shape = tuple(reader.number("Q", f"shape of {name}") for _ in range(dimensions))
    type_number = reader.number("I", f"type of {name}")
    offset = reader.number("Q", f"offset of {name}")
    if type_number not in TYPES:
        raise BadGguf(
            f"tensor {name} has the unknown type {type_number}; the file is newer than this program"
        )
    type_name, block, size = TYPES[type_number]
    return Tensor(name, shape, type_name, -(-prod(shape) // block) * size, offset)


class _Reader:
    """Little-endian values from a file; every short read and absurd count raises BadGguf."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._texts = _MAX_TEXTS
        self._items = _MAX_ITEMS
        self._numbers = _MAX_NUMBERS
        self._size = file.seek(0, 2)
        file.seek(0)

    def take(self, size: int, what: str) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise BadGguf(f"the file ends within its {what}; fetch it again")
        return data

    def number(self, code: str, what: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0])

    def count(self, most: int, least_bytes: int, what: str) -> int:
        """A count of things of at least this many bytes each: more than the file can hold is absurd."""
        count = self.number("Q", what)
        if count > most or count * least_bytes > self._left():
            raise BadGguf(f"the {what} is {count}, more than the file can hold; it is damaged or truncated")
        return count

    def text(self, most: int, what: str) -> str:
        size = self.number("Q", f"length of {what}")
        if size > most or size > self._left():
            raise BadGguf(f"the {what} claims {size} bytes; the file is damaged or truncated")
        self._spend(size)
        return self.take(size, what).decode("utf-8", "replace")

    def value(self, kind: int, what: str) -> Value:
        if kind == _STRING:
            return self.text(_MAX_TEXTS, what)
        code = self._code(kind, what)
        value: Value = struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]
        return value

    def array(self, what: str) -> tuple[int, tuple[int | float, ...] | None]:
        """The length of an array, and its numbers when they are few. Everything else is skipped."""
        kind = self.number("I", f"element type of {what}")
        length = self.number("Q", f"length of {what}")
        if kind == _STRING:
            self._skip_texts(length, what)
            return length, None
        code = self._code(kind, what)
        size = length * struct.calcsize("<" + code)
        if size > self._left():
            raise BadGguf(f"the array {what} claims {length} elements; the file is damaged or truncated")
        if length > _SMALL_ARRAY:
            self._file.seek(size, 1)
            return length, None
        self._numbers -= length
        if self._numbers < 0:
            raise BadGguf(f"the header holds more than {_MAX_NUMBERS} numbers in arrays; the file is damaged")
        return length, struct.unpack(f"<{length}{code}", self.take(size, what))

    def _skip_texts(self, length: int, what: str) -> None:
        """Texts have no common size: each length is read, from the file's buffer, and jumped over."""
        if length * 8 > self._left():
            raise BadGguf(f"the array {what} claims {length} texts; the file is damaged or truncated")
        self._items -= length
        if self._items < 0:
            raise BadGguf(f"the header holds more than {_MAX_ITEMS} texts in arrays; the file is damaged")
        unpack: Callable[..., tuple[int]] = struct.Struct("<Q").unpack_from
        buffer, at = b"", 0
        for _ in range(length):
            if at + 8 > len(buffer):
                self._file.seek(at - len(buffer), 1)
                buffer, at = self._file.read(_BUFFER), 0
                if len(buffer) < 8:
                    raise BadGguf(f"the file ends within its {what}; fetch it again")
            size = unpack(buffer, at)[0]
            at += 8 + size
            if at > len(buffer) and at - len(buffer) > self._left():
                raise BadGguf(f"a text in {what} is longer than the file; it is damaged or truncated")
            self._spend(size)
            if at > len(buffer):
                self._file.seek(at - len(buffer), 1)
                buffer, at = b"", 0
        self._file.seek(at - len(buffer), 1)

    def _spend(self, size: int) -> None:
        self._texts -= size
        if self._texts < 0:
            raise BadGguf(f"the header holds more than {_MAX_TEXTS >> 20} MiB of text; the file is damaged")

    def at(self) -> int:
        return self._file.tell()

    def _left(self) -> int:
        return self._size - self.at()

    def _code(self, kind: int, what: str) -> str:
        if kind not in _SCALARS:
            raise BadGguf(
                f"{what} has the unknown type {kind}; the file is damaged or newer than this program"
            )
        return _SCALARS[kind]
