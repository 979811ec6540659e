"""`modelyard quantize`: what it makes and says, and what it refuses before it makes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.command_line import run
from modelyard.engines.gguf import read_header
from store.test_quantize import random_gguf

pytest.importorskip("gguf")


def test_a_file_is_quantized_into_the_store(tmp_path: Path) -> None:
    source = random_gguf(tmp_path / "f16.gguf")
    data = str(tmp_path / "data")
    made = run("quantize", str(source), "Q8_0", "--no-check", XDG_DATA_HOME=data)
    assert made.returncode == 0, made.stderr
    (blob,) = (tmp_path / "data").rglob("blobs/sha256/*")
    assert str(blob) in made.stdout
    assert "as q8_0, made by gguf " in made.stdout
    assert "requantized" not in made.stdout
    assert read_header(blob).fields["general.file_type"] == 7
    again = run("quantize", str(blob), "q4_0", "--no-check", XDG_DATA_HOME=data)
    assert "requantized: it was q8_0 already" in again.stdout


def test_a_model_of_a_configuration_is_quantized(tmp_path: Path) -> None:
    random_gguf(tmp_path / "f16.gguf")
    config = tmp_path / "yard.yaml"
    model = "{engine: llamacpp, source: f16.gguf, devices: [ram]}"
    config.write_text(f"server: {{data_dir: data}}\nmodels:\n  m: {model}\n  f: {{engine: fake}}\n")
    made = run("quantize", "m", "q4_0", "--no-check", "-c", str(config), folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "f16.gguf" in made.stdout
    for name, word in (("f", "has no file"), ("unknown", "no model")):
        refused = run("quantize", name, "q4_0", "-c", str(config), folder=tmp_path)
        assert refused.returncode == 1
        assert word in refused.stderr.lower()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("f16.gguf", "q4_km"), "did you mean q4_k_m"),
        (("absent.gguf", "q8_0"), "no file"),
        (("text.txt", "q8_0"), "GGUF"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, words: tuple[str, str], said: str) -> None:
    random_gguf(tmp_path / "f16.gguf")
    (tmp_path / "text.txt").write_text("not a model")
    refused = run("quantize", *words, folder=tmp_path, XDG_DATA_HOME=str(tmp_path / "data"))
    assert refused.returncode == 1
    assert said in refused.stderr
    assert not list((tmp_path / "data").rglob("blobs/sha256/*"))
