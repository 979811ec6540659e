"""Conversion for CTranslate2. That what is made translates as its original does is tested with PyTorch, in
tests/e2e."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modelyard.errors import BadFile
from modelyard.servers.translation import weights
from modelyard.servers.translation.tokens import Tokenizer
from servers.translation import contract, random_models

pytest.importorskip("ctranslate2")

from modelyard.servers.translation.convert import convert


def made(folder: Path, target: Path, type: str | None = None) -> Path:
    target.mkdir()
    convert(folder, target, type)
    return target


def test_there_are_as_many_tokens_as_weights(models: dict[str, Path], converted: dict[str, Path]) -> None:
    for name, folder in models.items():
        size = json.loads((folder / "config.json").read_text())["vocab_size"]
        tokens = json.loads((converted[name] / "shared_vocabulary.json").read_text())
        assert len(tokens) == len(set(tokens)) == size
    m2m100 = json.loads((converted["m2m100"] / "shared_vocabulary.json").read_text())
    assert m2m100[-9] == "__zu__"
    assert m2m100[-8:] == [f"madeupword{number}" for number in range(8)]
    assert m2m100[:4] == ["<s>", "<pad>", "</s>", "<unk>"]


def test_a_tokenizer_of_another_model(models: dict[str, Path], tmp_path: Path) -> None:
    folder = random_models.m2m100(tmp_path / "m2m100")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    more = {f"word{number}": len(vocabulary) + number for number in range(20)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary | more))
    with pytest.raises(
        BadFile,
        match=r"m2m100: its tokenizer has 219 tokens, and its weights are for 207: these are of two models",
    ):
        made(folder, tmp_path / "made")


def test_weights_that_are_not_those_of_the_configuration(tmp_path: Path) -> None:
    folder = random_models.marian(tmp_path / "marian")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"decoder_layers": 3}))
    with pytest.raises(BadFile, match=r"not those of its config\.json .*decoder\.layers\.2"):
        made(folder, tmp_path / "made")


@pytest.mark.parametrize(("type", "share"), [("float32", 1.0), ("float16", 0.5), ("int8", 0.26)])
def test_weights_become_smaller(models: dict[str, Path], tmp_path: Path, type: str, share: float) -> None:
    whole = (made(models["m2m100"], tmp_path / "whole") / "model.bin").stat().st_size
    folder = made(models["m2m100"], tmp_path / "made", type)
    assert (folder / "model.bin").stat().st_size == pytest.approx(share * whole, rel=0.5)
    backend = contract.opened("ctranslate2", folder)
    assert backend.run(contract.segments(backend), max_output=5)


def test_half_precision_stays_half(models: dict[str, Path], tmp_path: Path) -> None:
    folder = random_models.m2m100(tmp_path / "half")
    found = weights.read(folder)
    random_models.save(folder / "model.safetensors", {name: one.astype("f2") for name, one in found.items()})
    size = (made(models["m2m100"], tmp_path / "whole") / "model.bin").stat().st_size
    assert (made(folder, tmp_path / "made") / "model.bin").stat().st_size < 0.6 * size


def test_by_command(models: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "modelyard.servers.translation.convert"]
    (tmp_path / "made").mkdir()

    def run(*words: str) -> tuple[int, str]:
        ran = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60, check=False)
        return ran.returncode, ran.stderr

    assert run(str(models["marian"]), str(tmp_path / "made"), "int8") == (0, "")
    assert (tmp_path / "made" / "model.bin").is_file()
    code, said = run(str(tmp_path / "absent"), str(tmp_path / "made"))
    assert code == 1
    assert "has no config.json" in said
    assert run("a")[0] == run("a", "b", "int7")[0] == 2


def test_what_a_text_says_is_no_mark(models: dict[str, Path]) -> None:
    tokens = Tokenizer(models["m2m100"]).segment("a __fr__ </s> <pad> b", "en", "de").tokens
    assert tokens[0] == "__en__"
    assert not {"__fr__", "</s>", "<pad>"} & {*tokens[1:-1]}


# -- files of weights ------------------------------------------------------------------------------------


def test_types_that_numpy_lacks(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 0.0, 3e38], "<f4")
    halves = (values.view("<u4") >> 16).astype("<u2").tobytes()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + halves)
    found = weights.read(tmp_path)["w"]
    assert found.shape == (2, 2)
    np.testing.assert_allclose(found.ravel(), values, rtol=0.01)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 7, b"\xff" * 64, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": {}}'],
)
def test_safetensors_that_are_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BadFile, match=r"model\.safetensors: "):
        weights.read(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        weights.read(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)

    def __init__(self, path: Path) -> None:
        self.path = path


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return file.getvalue()


@pytest.mark.parametrize("form", [zipped, bytes])
def test_nothing_in_a_pickle_is_run(tmp_path: Path, form: Callable[[bytes], bytes]) -> None:
    run = tmp_path / "run"
    (tmp_path / "pytorch_model.bin").write_bytes(form(pickle.dumps(Evil(run))))
    with pytest.raises(BadFile, match=r"is no pickle of tensors \(it asks for posix\.system\)"):
        weights.read(tmp_path)
    assert not run.exists()


@pytest.mark.parametrize(
    "content", [b"", b"x", zipped(b""), zipped(b"x"), pickle.dumps(1), zipped(pickle.dumps([]))]
)
def test_pickles_that_are_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(BadFile, match=r"pytorch_model\.bin: "):
        weights.read(tmp_path)
