"""What a file is, judged by its bytes: whole weights in a format that runs no code, or something else.

Used by `cache` before a file gets its final name, and when a local file is used for the first time. It reads
headers and beginnings alone: memory and time are bounded, however large or hostile the file is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from modelyard.engines.gguf import MAGIC, GgufHeader, facts, whole_header
from modelyard.errors import BadFile
from modelyard.servers.translation import model_bin, packed
from modelyard.store.safetensors import check_safetensors, header_length

_BEGINNING = 512
_BUFFER = 1 << 20
_ZIP = b"PK\x03\x04"
_PICKLED = b".pkl"  # PyTorch's member `archive/data.pkl` comes first
_LFS = b"version https://git-lfs"
LISTED = b'{"kind":"files of a folder","files":'  # how a list of the store's own begins (`folders`)
_OTHERS = (
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x7fELF", "a program"),
    (b"lmgg", "a GGML file of an old kind"),
    (b"tjgg", "a GGML file of an old kind"),
    (b"fmgg", "a GGML file of an old kind"),
)


class Kind(StrEnum):
    """What a file can be. A pickle runs code when it is read."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"
    CTRANSLATE2 = "ctranslate2"
    PICKLE = "pickle"
    FOLDER = "folder"
    OTHER = "other"


SAFE = frozenset({Kind.GGUF, Kind.SAFETENSORS, Kind.CTRANSLATE2})


@dataclass(frozen=True, slots=True)
class Found:
    """`kind`, and what a message calls it: not how it begins, which may be nobody's business. `header` is
    that of a GGUF file, and of others what is told of them."""

    kind: Kind
    said: str
    header: GgufHeader | Mapping[str, object] = field(default_factory=dict, repr=False)

    @property
    def facts(self) -> Mapping[str, object]:
        """What an estimate needs of the header (`engines.gguf.facts`, `safetensors.check_safetensors`).
        Raises BadGguf."""
        return facts(self.header) if isinstance(self.header, GgufHeader) else self.header


def look(path: Path) -> Found:
    """What a file is. Raises BadGguf or BadFile, which name no path, for weights that are damaged or not
    whole; and OSError."""
    with path.open("rb", buffering=_BUFFER) as file:
        return look_at(file)


def look_at(file: BinaryIO) -> Found:
    """See `look`; of a seekable file that stands at its beginning."""
    start = file.read(_BEGINNING)
    if start.startswith(MAGIC):
        return Found(Kind.GGUF, "a GGUF file", whole_header(file))
    if header_length(start) is not None:
        return Found(Kind.SAFETENSORS, "a safetensors file", check_safetensors(file))
    if model_bin.is_one(start):
        return Found(Kind.CTRANSLATE2, "a model for CTranslate2", packed.facts(file))
    if start.startswith(LISTED):
        return Found(Kind.FOLDER, "a list of files")
    return _other(start)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a version demands of a file: its `sha256` (hex; empty: any), and whether it may be a pickle."""

    sha256: str = ""
    allow_pickle: bool = False

    def allow(self, kind: str) -> bool:
        return kind in SAFE or (kind == Kind.PICKLE and self.allow_pickle)


def check(found: Found, terms: Terms) -> None:
    """Raises BadFile, which names no path, for what a model's file must not be."""
    if terms.allow(found.kind):
        return
    expected = "a GGUF or safetensors file was expected"
    if found.kind is Kind.PICKLE:
        expected += (
            "; reading a pickle runs the code in it: convert it, or say `allow_pickle: true` if you trust it"
        )
    raise BadFile(f"this is {found.said}; {expected}")


def _other(start: bytes) -> Found:
    if not start:
        return Found(Kind.OTHER, "an empty file")
    if start.startswith(_ZIP):
        if _PICKLED in start[30:]:
            return Found(Kind.PICKLE, "a PyTorch file (a pickle in a zip archive)")
        return Found(Kind.OTHER, "a zip archive")
    if start[0] == 0x80 and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return Found(Kind.PICKLE, "a pickle")
    if start.startswith(_LFS):
        return Found(Kind.OTHER, "a Git LFS pointer instead of its file (`git lfs pull` fetches that)")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:9].lower() == b"<!doctype" or text[:5].lower() in {b"<html", b"<head", b"<body", b"<?xml"}:
        return Found(Kind.OTHER, "an HTML or XML page")
    if text[:1] in {b"{", b"["}:
        return Found(Kind.OTHER, "JSON text")
    for magic, said in _OTHERS:
        if start.startswith(magic):
            return Found(Kind.OTHER, said)
    if not start.strip(b"\0"):
        return Found(Kind.OTHER, "a file that begins with zeros alone")
    return Found(Kind.OTHER, "of no known format")
