"""What a file is, and that nothing a file holds costs more than an error."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.gguf_file import gguf
from modelyard.engines.gguf import parse_header
from modelyard.errors import BadFile, BadGguf
from modelyard.store import formats
from modelyard.store.formats import Kind, Terms, check, look
from modelyard.store.safetensors import MOST, check_safetensors

TENSORS = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
    "c": {"dtype": "F4", "shape": [3], "data_offsets": [26, 28]},
    "new": {"dtype": "Q9", "shape": [3], "data_offsets": [28, 30]},
    "none": {"dtype": "U8", "shape": [0, 4], "data_offsets": [30, 30]},
    "__metadata__": {"format": "pt"},
}
GGUF = gguf({"general.architecture": "llama", "names": ["a", "b"]}, [("token_embd.weight", (64, 3), 0)])


def safetensors(tensors: object = TENSORS, data: int = 30, length: int | None = None) -> bytes:
    header = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(data)


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def written(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (GGUF, Kind.GGUF, "a GGUF file"),
        (safetensors(), Kind.SAFETENSORS, "a safetensors file"),
        (safetensors({}, 0), Kind.SAFETENSORS, "a safetensors file"),
        (pickle.dumps({"a": 1}), Kind.PICKLE, "a pickle"),
        (pickle.dumps([1], 2), Kind.PICKLE, "a pickle"),
        (zipped("archive/data.pkl", "archive/data/0"), Kind.PICKLE, "a PyTorch file"),
        (zipped("readme.txt"), Kind.OTHER, "a zip archive"),
        (b"", Kind.OTHER, "an empty file"),
        (b"<!DOCTYPE html><title>Sign in", Kind.OTHER, "an HTML or XML page"),
        (b"\xef\xbb\xbf\n <html>", Kind.OTHER, "an HTML or XML page"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey', Kind.OTHER, "an HTML or XML page"),
        (b'{"error": "not found"}', Kind.OTHER, "JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", Kind.OTHER, "a Git LFS pointer"),
        (b"\x1f\x8b\x08\x00", Kind.OTHER, "a gzip archive"),
        (bytes(1000), Kind.OTHER, "begins with zeros"),
        (b"Not Found", Kind.OTHER, "of no known format"),
        (b"\xff\x01\x02\xfe" * 20, Kind.OTHER, "of no known format"),
    ],
)  # fmt: skip
def test_what_a_file_is(content: bytes, kind: Kind, said: str, tmp_path: Path) -> None:
    found = look(written(tmp_path, content))
    assert found.kind is kind
    assert said in found.said
    assert "Sign in" not in found.said, "what a file holds is nobody's business"


def test_what_a_models_file_may_be() -> None:
    for kind in (Kind.GGUF, Kind.SAFETENSORS):
        check(formats.Found(kind, ""), Terms())
    told = formats.Found(Kind.PICKLE, "a pickle")
    check(told, Terms(allow_pickle=True))
    with pytest.raises(BadFile, match=r"this is a pickle; a GGUF or safetensors .*allow_pickle: true"):
        check(told, Terms())
    with pytest.raises(BadFile, match=r"this is a page; a GGUF or safetensors file was expected$"):
        check(formats.Found(Kind.OTHER, "a page"), Terms(allow_pickle=True))


def place(begin: int, end: int, shape: object = (1,), dtype: object = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (safetensors(data=7), "holds 7 of 30 bytes of its tensors, 23 are missing"),
        (safetensors()[:100], "ends within its safetensors header, [0-9]+ bytes are missing"),
        (safetensors(length=MOST + 1), f"claims {MOST + 1} bytes, above the {MOST}"),
        (safetensors(length=1 << 39), "claims 549755813888 bytes"),
        (safetensors(b'{"a": '), "is no JSON"),
        (safetensors(b"{" + b'"a":{' * 5000), "is no JSON"),
        (safetensors(b'{"a":' + b"9" * 5000 + b"}"), "is no JSON"),
        (safetensors({"a": 5}), "'a' is not described"),
        (safetensors({"a": place(0, 1, -1)}), "'a' has no shape"),
        (safetensors({"a": place(0, 1, [True])}), "'a' has no shape"),
        (safetensors({"a": place(0, 1, [1] * 17)}), "'a' has no shape"),
        (safetensors({"a": place(2, 1)}), "'a' has no place"),
        (safetensors({"a": place(-1, 1)}), "'a' has no place"),
        (safetensors({"a": place(0, 1 << 63)}), "'a' needs 1 bytes and has 9223372036854775808"),
        (safetensors({"a": place(0, 1 << 63, [1 << 63])}), "9223372036854775778 are missing"),
        (safetensors({"a": place(0, 4, [4]), "b": place(3, 5, [2])}), "tensors 'a' and 'b' overlap"),
    ],
)
def test_damaged_safetensors_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(BadFile, match=said):
        look(path)


def test_no_truncation_passes(tmp_path: Path) -> None:
    end = parse_header(io.BytesIO(GGUF)).end
    for content, least in ((safetensors(), 9), (GGUF[:end], 4)):
        whole = look(written(tmp_path, content)).kind
        for size in range(least, len(content)):
            with pytest.raises((BadFile, BadGguf)):
                look(written(tmp_path, content[:size]))
        assert whole in formats.SAFE


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 10_000),
        st.one_of(
            st.binary(min_size=1, max_size=4),
            st.sampled_from([struct.pack("<Q", 1 << power) for power in (16, 24, 31, 32, 40, 62, 63)]),
            st.sampled_from([b"\xff" * 8, b"99999999999", b"-1", b"[[[[[[", b'"', b"{", b"1e999", b"null"]),
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@given(st.sampled_from([GGUF, safetensors()]), MUTATIONS, st.integers(0, 400))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_costs_an_error_at_most(
    tmp_path: Path, content: bytes, mutations: list[tuple[int, bytes, bool]], cut: int
) -> None:
    data = bytearray(content)
    for place_of, put, insert in mutations:
        at = place_of % len(data)
        data[at : at if insert else at + len(put)] = put
    path = written(tmp_path, bytes(data[: len(data) - cut % len(data)]))
    began = time.process_time()
    tracemalloc.start()
    try:
        with suppress(BadFile, BadGguf):
            look(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20
    assert time.process_time() - began < 5


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["a", "b", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
    ),
    max_leaves=20,
))  # fmt: skip
def test_any_json_is_a_header_or_an_error(header: object) -> None:
    with suppress(BadFile):
        check_safetensors(io.BytesIO(safetensors({"t": header} if not isinstance(header, dict) else header)))


def test_a_large_header_is_read_within_bounds(tmp_path: Path) -> None:
    tensors = b"{" + b",".join(b'"%d":{}' % number for number in range(700_000)) + b"}"
    path = written(tmp_path, safetensors(tensors, 0))
    tracemalloc.start()
    try:
        with pytest.raises(BadFile):
            look(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 256 << 20


def test_a_sparse_terabyte_is_judged_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, GGUF)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    began = time.process_time()
    assert look(path).kind is Kind.GGUF
    assert time.process_time() - began < 1
