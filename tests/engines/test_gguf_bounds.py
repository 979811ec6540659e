"""What a hostile header may cost: an error, within bounded time and memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.gguf_file import text
from modelyard.engines.gguf import read_header
from modelyard.errors import BadGguf


def _head(fields: int, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields)


def _many_texts() -> bytes:
    """Five million empty texts."""
    return _head(1) + text("a") + struct.pack("<IIQ", 9, 8, 5_000_000) + bytes(40_000_000)


def _far_texts() -> bytes:
    """Texts that lie far apart: each would be jumped to, and its surroundings read."""
    one = struct.pack("<Q", 2 << 20) + bytes(2 << 20)
    return _head(1) + text("a") + struct.pack("<IIQ", 9, 8, 40) + 40 * one


def _many_numbers() -> bytes:
    array = struct.pack("<IIQ", 9, 0, 1024) + bytes(1024)
    return _head(1100) + b"".join(text(str(number)) + array for number in range(1100)) + bytes(64)


def _many_tensors() -> bytes:
    return _head(0, (1 << 16) + 1) + bytes(24 * ((1 << 16) + 1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_many_texts, "more than 4194304 texts in arrays"),
        (_far_texts, "more than 64 MiB of text"),
        (_many_numbers, "more than 1048576 numbers in arrays"),
        (_many_tensors, "number of tensors is 65537"),
    ],
)
def test_absurd_headers_cost_an_error(make: Callable[[], bytes], said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(make())
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(BadGguf, match=said):
            read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 10
    assert peak < 64 << 20


def test_a_truncated_file_is_told_how_many_bytes_it_lacks(gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    size = read_header(gguf).end
    with gguf.open("rb") as whole, cut.open("wb") as part:
        part.write(whole.read(4 << 20))
        part.truncate(size - 12_345)
    with pytest.raises(BadGguf, match=f"ends after {size - 12_345} of {size} bytes, 12345 are missing"):
        read_header(cut)
