"""Quantization with our own tool: sizes, what is kept, memory; and how llama-quantize is called."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from math import prod
from pathlib import Path
from typing import Any

import pytest

from engines.gguf_file import field, tensor
from modelyard.engines.gguf import read_header
from modelyard.store import quantize as module
from modelyard.store.quantize import (
    OWN_TYPES,
    Tool,
    likely_bytes,
    main_type,
    planned,
    problem,
    quantize,
    tool_for,
)

numpy = pytest.importorskip("numpy")
pytest.importorskip("gguf")
from gguf import GGMLQuantizationType as Type  # noqa: E402
from gguf.quants import dequantize  # noqa: E402

F16, F32 = 1, 0
ROW = 256
# name -> (shape as GGUF has it, type)
TENSORS: Mapping[str, tuple[tuple[int, ...], int]] = {
    "token_embd.weight": ((ROW, 320), F16),
    "blk.0.attn_norm.weight": ((ROW,), F32),
    "blk.0.attn_q.weight": ((ROW, ROW), F16),
    "blk.0.ffn_gate_inp.weight": ((ROW, 8), F16),
    "blk.0.ffn_up.weight": ((ROW, 512), F16),
    "blk.0.odd.weight": ((100, 64), F16),
    "blk.0.tiny.weight": ((32, 8), F16),
    "output_norm.weight": ((ROW,), F16),
}
MATRICES = ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_up.weight")


def random_gguf(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], int]] = TENSORS) -> Path:
    """A file with these tensors, of random weights, and the key-values of a small llama."""
    random = numpy.random.default_rng(7)
    fields = {
        "general.architecture": "llama",
        "general.name": "random",
        "general.license": "apache-2.0",
        "general.file_type": 1,
        "tokenizer.ggml.tokens": [f"token {number}" for number in range(320)],
        "llama.block_count": 1,
        "some.numbers": [1, 2, 3],
    }
    infos, data, offset = [], [], 0
    for name, (shape, kind) in tensors.items():
        values = (random.standard_normal(prod(shape)) / 10).astype("float16" if kind == F16 else "float32")
        infos.append(tensor(name, shape, kind)[:-8] + struct.pack("<Q", offset))
        data.append(values.tobytes() + bytes(-values.nbytes % 32))
        offset += len(data[-1])
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(fields))
    head += b"".join(field(name, value) for name, value in fields.items()) + b"".join(infos)
    path.write_bytes(head + bytes(-len(head) % 32) + b"".join(data))
    return path


def weights(path: Path, name: str) -> Any:
    header = read_header(path)
    found = next(one for one in header.tensors if one.name == name)
    begin = header.end - max(one.offset + one.bytes for one in header.tensors) + found.offset
    raw = numpy.fromfile(path, dtype=numpy.uint8, count=found.bytes, offset=begin).reshape(1, -1)
    return dequantize(raw, Type[found.type.upper()]).reshape(-1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return random_gguf(tmp_path / "f16.gguf")


@pytest.mark.parametrize(
    ("type", "block_bytes", "error"), [("q8_0", 34, 0.002), ("q4_0", 18, 0.05), ("q5_1", 24, 0.02)]
)
def test_sizes_are_those_of_the_type(
    source: Path, tmp_path: Path, type: str, block_bytes: int, error: float
) -> None:
    target = tmp_path / "out.gguf"
    steps = list(quantize(source, target, type))
    before, after = read_header(source), read_header(target)
    found = {one.name: one for one in after.tensors}
    assert [one.name for one in after.tensors] == list(TENSORS)
    for name in MATRICES:
        count = prod(TENSORS[name][0])
        assert found[name].bytes == count // 32 * block_bytes
        assert numpy.abs(weights(target, name) - weights(source, name)).max() < error
    for name in ("blk.0.attn_norm.weight", "output_norm.weight", "blk.0.tiny.weight"):
        assert found[name].type == "f32"
        assert numpy.array_equal(weights(target, name), weights(source, name))
    assert found["blk.0.odd.weight"].type == found["blk.0.ffn_gate_inp.weight"].type == "f16"
    assert target.stat().st_size - after.end < 32
    assert steps[-1] == (before.tensor_bytes, before.tensor_bytes)
    assert steps == sorted(steps)
    own = {"general.file_type": module.FILE_TYPES[type], "general.quantization_version": 2}
    assert after.fields == {**before.fields, **own, "modelyard.quantized_from": "f16"}
    assert (after.arrays, after.lengths) == (before.arrays, before.lengths)
    _, remarks = planned(before, type)
    assert remarks == ["blk.0.odd.weight stays f16: its rows of 100 do not divide by 32"]


def test_the_key_values_stay_readable_for_others(source: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    list(quantize(source, tmp_path / "out.gguf", "q4_1"))
    reader = GGUFReader(tmp_path / "out.gguf")
    tokens = reader.get_field("tokenizer.ggml.tokens")
    assert tokens is not None
    assert tokens.contents()[-1] == "token 319"
    assert {one.name: one.tensor_type.name for one in reader.tensors}["blk.0.ffn_up.weight"] == "Q4_1"


@pytest.mark.parametrize("type", OWN_TYPES)
def test_what_is_quantized_is_quantized_again(source: Path, tmp_path: Path, type: str) -> None:
    list(quantize(source, tmp_path / "first.gguf", "q8_0"))
    first = read_header(tmp_path / "first.gguf")
    assert main_type(first) == "q8_0"
    list(quantize(tmp_path / "first.gguf", tmp_path / "second.gguf", type))
    second = read_header(tmp_path / "second.gguf")
    assert second.fields["modelyard.quantized_from"] == "q8_0"
    assert main_type(second) == type
    name = MATRICES[0]
    far = numpy.abs(weights(tmp_path / "second.gguf", name) - weights(source, name)).max()
    assert far < 0.05


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """80 million weights, 160 MB, in a process that has 80 MB above what a small file takes."""
    small = random_gguf(tmp_path / "small.gguf", {"a.weight": ((ROW, 64), F16)})
    large = tmp_path / "large.gguf"
    shape, data = (8192, 9766), small.read_bytes()
    large.write_bytes(data.replace(struct.pack("<IQQ", 2, ROW, 64), struct.pack("<IQQ", 2, *shape)))
    os.truncate(large, large.stat().st_size + 2 * prod(shape))
    assert peak(large, tmp_path / "b", "q8_0") - peak(small, tmp_path / "a", "q8_0") < 80 << 20
    assert main_type(read_header(tmp_path / "b")) == "q8_0"


def peak(source: Path, target: Path, type: str) -> int:
    """The most bytes that the tool had in memory."""
    code = "import os, sys; pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *sys.argv[1:]])\n"
    code += "_, status, used = os.wait4(pid, 0); assert status == 0, status; print(used.ru_maxrss)"
    argv = Tool("gguf", "").argv(source, target, type, "f16")
    run = subprocess.Popen(
        [sys.executable, "-c", code, *argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    try:
        last = run.stdout.read().split()[-1]
    finally:
        assert run.stdin is not None
        run.stdin.close()
        run.stdout.close()
        assert run.wait(30) == 0
    return int(last) * 1024


def test_the_tool_ends_with_whoever_waits_for_it(source: Path, tmp_path: Path) -> None:
    argv = Tool("gguf", "").argv(source, tmp_path / "out", "q8_0", "f16")
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=50)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("type", module.FILE_TYPES)
def test_every_type_has_a_likely_size(source: Path, type: str) -> None:
    weights = sum(prod(shape) for shape, _ in TENSORS.values())
    assert weights * 2 / 8 < likely_bytes(read_header(source), type) <= weights * 4.8


class TestTools:
    def test_a_type_that_nobody_knows(self) -> None:
        assert "did you mean q4_k_m" in (problem("q4_km") or "")

    def test_llama_quantize_is_preferred(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = stand_in(tmp_path, monkeypatch)
        assert problem("q4_k_m") is None
        tool = tool_for("q4_k_m")
        assert tool is not None
        mark = ["--override-kv", "modelyard.quantized_from=str:f16"]
        assert tool.argv(Path("a"), Path("b"), "q4_k_m", "f16") == [program, *mark, "a", "b", "Q4_K_M"]
        assert tool.argv(Path("a"), Path("b"), "q8_0", "q4_1")[1] == "--allow-requantize"
        before = tool.version
        Path(program).write_text("#!/bin/sh\nexit 1\n")
        assert (tool_for("q4_k_m") or tool).version != before

    def test_without_it_some_types_cannot_be_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        said = problem("q4_k_m") or ""
        assert "llama-quantize" in said
        assert "q8_0" in said
        assert problem("q8_0") is None

    def test_without_any_tool_the_message_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(name: str) -> str:
            raise PackageNotFoundError(name)

        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(module, "version", absent)
        assert "pip install 'modelyard[quantize]'" in (problem("q8_0") or "")


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str = "exit 0") -> str:
    """A program named llama-quantize that is first on PATH."""
    program = folder / "llama-quantize"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return str(program)
