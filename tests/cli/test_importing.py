"""`modelyard import` as a user runs it: what it prints, what it writes, its exit code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cli import command_line
from engines.gguf_file import gguf
from importing.stores import add_model
from modelyard.config import load

WEIGHTS = gguf(
    {"general.architecture": "llama", "llama.block_count": 1}, [("blk.0.attn_q.weight", [4, 4], 0)]
)


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return command_line.run("import", *words, folder=folder, **environment)


@pytest.fixture
def swap(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(WEIGHTS)
    path = tmp_path / "config.yaml"
    path.write_text(
        "models:\n  m: {cmd: llama-server -m model.gguf -c 512, unlisted: true}\n  v: {cmd: vllm}\n"
    )
    path.chmod(0o600)
    return path


def test_llama_swap(swap: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "llama-swap", "config.yaml", "-o", "yard.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert first == "yard.yaml: 1 of 2 models: m"
    assert "  models.m.unlisted: all models are listed" in rest
    assert "  models.v.cmd: this model is left out: it runs vllm; only llama-server is supported" in rest
    written = tmp_path / "yard.yaml"
    assert load(written).models[0].spec.source == str(tmp_path / "model.gguf")
    assert written.stat().st_mode & 0o777 == 0o600, "as readable as what it was made from"


def test_an_existing_file_stays(swap: Path, tmp_path: Path) -> None:
    output = tmp_path / "modelyard.yaml"
    output.write_text("mine")
    done = run(tmp_path, "llama-swap", str(swap))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "modelyard: modelyard.yaml is there already; name another file, or say --force\n"
    assert output.read_text() == "mine"
    assert run(tmp_path, "llama-swap", str(swap), "--force").returncode == 0
    assert load(output).models


@pytest.mark.parametrize("other", ["config.yaml", "./config.yaml", "link.yaml"])
def test_what_is_imported_is_not_overwritten(swap: Path, tmp_path: Path, other: str) -> None:
    (tmp_path / "link.yaml").symlink_to(swap)
    before = swap.read_text()
    for force in ((), ("--force",)):
        done = run(tmp_path, "llama-swap", "config.yaml", "-o", other, *force)
        assert (done.returncode, done.stdout) == (1, "")
        assert "is what is imported; name another file with -o\n" in done.stderr
    assert swap.read_text() == before
    assert (tmp_path / "link.yaml").is_symlink()


def test_nothing_to_import_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("models: {v: {cmd: vllm serve x}}")
    done = run(tmp_path, "llama-swap", "config.yaml")
    assert done.returncode == 1
    assert "models.v.cmd: this model is left out" in done.stdout
    assert done.stderr.endswith("config.yaml: none of its 1 models can be imported\n")
    assert not (tmp_path / "modelyard.yaml").exists()


def test_ollama(tmp_path: Path) -> None:
    add_model(tmp_path / "store", "small:latest", WEIGHTS)
    for words, environment in (
        (("ollama", "--store", "store", "--verify"), {}),
        (("ollama", "--force"), {"OLLAMA_MODELS": str(tmp_path / "store")}),
    ):
        done = run(tmp_path, *words, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("modelyard.yaml: 1 of 1 models: small:latest\n")
        assert load(tmp_path / "modelyard.yaml").models[0].aliases == ("small",)
    done = run(tmp_path, "ollama", "--store", "nowhere", "-o", "x.yaml")
    assert done.returncode == 1
    assert "is no model store of Ollama" in done.stderr
