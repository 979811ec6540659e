"""The header reader: right, fast, and unharmed by what is no GGUF."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.gguf_file import gguf as written
from engines.gguf_file import text
from modelyard.engines.gguf import facts, parse_header, read_header
from modelyard.errors import BadGguf

FIELDS = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.0,
    "general.flag": True,
    "llama.attention.head_count_kv": [4, 0],
    "tokenizer.ggml.tokens": ["a", "bc", ""],
    "tokenizer.ggml.token_type": list(range(2000)),
    "tokenizer.chat_template": "x" * 5000,
}
TENSORS = [
    ("token_embd.weight", (64, 3), 8),
    ("blk.0.attn_q.weight", (256, 2), 12),
    ("blk.1.attn_q.weight", (256, 4), 12),
    ("output_norm.weight", (64,), 0),
]


def test_what_a_header_holds() -> None:
    header = parse_header(io.BytesIO(written(FIELDS, TENSORS)))
    assert header.fields["general.architecture"] == "llama"
    assert header.fields["general.flag"] is True
    assert header.arrays == {"llama.attention.head_count_kv": (4, 0)}
    assert header.lengths["tokenizer.ggml.tokens"] == 3
    assert header.lengths["tokenizer.ggml.token_type"] == 2000
    assert [tensor.bytes for tensor in header.tensors] == [204, 288, 576, 256]
    assert header.tensor_bytes == 1324
    assert header.tensors[1].shape == (256, 2)
    assert header.tensors[1].type == "q4_k"


def test_the_facts_for_an_estimate() -> None:
    found = facts(parse_header(io.BytesIO(written(FIELDS, TENSORS))))
    assert found["tensors.blocks"] == [288, 576]
    assert (found["tensors.embedding"], found["tensors.output"]) == (204, 256)
    assert found["tensors.total"] == 1324
    assert found["vocabulary"] == 3
    assert found["llama.attention.head_count_kv"] == [4, 0]
    assert "tokenizer.chat_template" not in found


def test_a_real_file(gguf: Path) -> None:
    header = read_header(gguf)
    assert header.fields["llama.block_count"] == 30
    assert header.lengths["tokenizer.ggml.merges"] == 48_900
    assert len(header.tensors) == 272
    assert header.tensor_bytes == 96_576_768


def test_version_2_is_read() -> None:
    assert parse_header(io.BytesIO(written({"a": 1}, version=2))).fields == {"a": 1}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends within its magic number"),
        (b"garbage, not a model", "not a GGUF file"),
        (b"GGUF\x03", "ends within its version"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(64), "GGUF version 1 is not supported"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0) + bytes(64),
            "number of tensors is 1152921504606846976",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40) + bytes(64), "number of fields is 1099511627776"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 50) + bytes(64), "field name claims"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 1 << 60),
            "a claims 1152921504606846976 texts",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 1 << 60),
            "a claims 1152921504606846976 elements",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQQ", 9, 8, 1, 1 << 50),
            "a text in a is longer than the file",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 77), "unknown type 77"),
        (written({}, [("t", (1,), 99)]), "tensor t has the unknown type 99"),
        (written({}, [("t", (1,) * 9, 0)]), "claims 9 dimensions"),
        (written({}, [("blk", (1,), 0)]), "the tensor 'blk' names no layer"),
        (written({}, [("blk.", (1,), 0)]), "the tensor 'blk.' names no layer"),
        (written({}, [("blk.\u00b2.weight", (1,), 0)]), "names no layer"),
        (written({}, [(f"blk.{'9' * 5000}", (1,), 0)]), "names no layer"),
        (written({"general.architecture": "x", "x.block_count": 1 << 31}), "its block_count is 2147483648"),
        (written({"general.architecture": "x", "x.block_count": "many"}), "its block_count is 'many'"),
    ],
)
def test_what_is_no_gguf_is_refused(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(BadGguf) as caught:
        read_header(path)
    assert said in caught.value.message
    assert caught.value.message.startswith(f"{path}: ")


def test_every_truncation_is_an_error_or_a_whole_header() -> None:
    data = written(FIELDS, TENSORS)
    whole = parse_header(io.BytesIO(data))
    for size in range(len(data)):
        try:
            assert parse_header(io.BytesIO(data[:size])) == whole
        except BadGguf:
            assert size < len(data) - 64 + 1


@given(st.data())
def test_damage_never_costs_more_than_an_error(draw: st.DataObject) -> None:
    data = bytearray(written(FIELDS, TENSORS))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(4, len(data) - 1))] = draw.draw(st.integers(0, 255))
    tracemalloc.start()
    try:
        facts(parse_header(io.BytesIO(bytes(data))))
    except BadGguf:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20
