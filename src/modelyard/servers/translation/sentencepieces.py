"""SentencePiece's pieces of a tokenizer.json, which is all that Transformers writes of NLLB's tokenizer now.

Used by `tokens`. What SentencePiece reads is a protocol buffer: some pieces with their scores, and a table of
how letters are normalized, which the tokenizer.json has as it was. Standard library only.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modelyard.errors import BadFile
from modelyard.servers.translation.families import PIECES, TOKENIZER, read_json

_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3
_FIRST = (("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL))
_SPECIAL = frozenset(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
_BPE = 2


def of_tokenizer(folder: Path) -> bytes:
    """What `sentencepiece.bpe.model` would hold, in the order of the tokens' numbers. Raises BadFile."""
    found = read_json(folder / TOKENIZER)
    try:
        model = found["model"]
        if model["type"] != "BPE":
            raise ValueError(f"its model is {model['type']}")
        added = {one["content"] for one in found["added_tokens"]}
        ranks = _ranks(model["merges"])
        numbers = sorted(model["vocab"].items(), key=lambda one: int(one[1]))
        words = [word for word, _ in numbers if word not in added and word not in _SPECIAL]
        pieces = [_piece(word, 0.0, kind) for word, kind in _FIRST]
        last = len(ranks)
        pieces += [_piece(word, -float(ranks.get(word, last + place))) for place, word in enumerate(words)]
        charsmap = _charsmap(found.get("normalizer"))
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as error:
        raise BadFile(
            f"{folder}: lacks {PIECES}, and its {TOKENIZER} cannot stand for that ({error}); copy the "
            f"{PIECES} of the model that this one was made of"
        ) from None
    trainer = _number(3, _BPE) + _number(4, len(pieces))
    normalizer = _bytes(1, b"nmt_nfkc" if charsmap else b"identity") + _bytes(2, charsmap)
    return b"".join(_bytes(1, one) for one in pieces) + _bytes(2, trainer) + _bytes(3, normalizer)


def _ranks(merges: Iterable[Any]) -> dict[str, int]:
    """When each piece is made of two others: the best of its merges."""
    found: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        one, other = merge.split(" ") if isinstance(merge, str) else merge
        found.setdefault(one + other, rank)
    return found


def _charsmap(normalizer: Mapping[str, Any] | None) -> bytes:
    """The table of letters; spaces are SentencePiece's own to put right."""
    if normalizer is None:
        return b""
    parts = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    found = b""
    for part in parts:
        if part["type"] == "Precompiled":
            found = base64.b64decode(part["precompiled_charsmap"] or "", validate=True)
        elif part["type"] not in {"Replace", "Strip"}:
            raise ValueError(f"it normalizes by {part['type']}")
    return found


# -- protocol buffers ------------------------------------------------------------------------------------


def _piece(word: str, score: float, kind: int = _NORMAL) -> bytes:
    return _bytes(1, word.encode()) + _key(2, 5) + struct.pack("<f", score) + _number(3, kind)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _varint(len(value)) + value


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
