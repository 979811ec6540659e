"""Ollama's model stores: whole ones, and broken ones of which the rest is imported."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from engines.gguf_file import gguf
from importing.conftest import LLAMA
from importing.stores import add_model, blob
from modelyard.config import load
from modelyard.errors import ConfigError
from modelyard.importing import ollama, written
from modelyard.importing.imported import Imported

BLOCK = [("blk.0.attn_q.weight", [4, 4], 0)]


def weights(number: int = 1, **fields: object) -> bytes:
    """A model file; another number is another file."""
    return gguf({**LLAMA, "general.size_label": str(number), **fields}, BLOCK)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "models"


def lost(result: Imported) -> dict[str, str]:
    return {remark.path: remark.message for remark in result.lost}


def test_models_are_served_from_where_they_lie(store: Path, tmp_path: Path) -> None:
    params = {
        "num_ctx": 2048,
        "num_gpu": 12,
        "num_thread": 4,
        "use_mmap": False,
        "temperature": 0.7,
        "stop": ["x"],
    }
    layers: dict[str, Any] = {
        "template": "{{ .Prompt }}",
        "params": params,
        "license": "MIT",
        "system": "Be kind.",
    }
    add_model(store, "llama3.2:3b", weights(), layers)
    add_model(store, "llama3.2:latest", weights(), layers)
    add_model(store, "me/tuned:v1", weights(2), {"adapter": weights(3)})
    add_model(store, "hf.co/org/repo-GGUF:Q4_K_M", weights(4), {"projector": weights(5)})
    add_model(store, "nomic:latest", gguf({"general.architecture": "bert", "bert.pooling_type": 1}, BLOCK))
    result = ollama.read(store)
    text = written.text_of(result, tmp_path / "o.yaml", {}, elsewhere=False)
    models = {model.spec.model: model for model in load(tmp_path / "o.yaml", text, {}).models}
    assert list(models) == ["llama3.2:3b", "nomic:latest", "me/tuned:v1", "hf.co/org/repo-GGUF:Q4_K_M"]
    first = models["llama3.2:3b"]
    assert first.aliases == ("llama3.2:latest", "llama3.2")
    assert first.spec.source == str(store / "blobs" / blob(store, weights())["digest"].replace(":", "-"))
    assert first.spec.parameters == {"context": 2048, "gpu_layers": 12, "threads": 4, "mmap": False}
    assert models["nomic:latest"].spec.parameters == {"embedding": True}
    assert models["nomic:latest"].aliases == ("nomic",)
    assert set(models["me/tuned:v1"].spec.parameters) == {"lora"}
    assert set(models["hf.co/org/repo-GGUF:Q4_K_M"].spec.parameters) == {"mmproj"}
    assert list(lost(result)) == ["llama3.2:3b: temperature", "llama3.2:3b: stop", "llama3.2:3b: system"]
    assert [remark.path for remark in result.remarks if not remark.lost] == [
        "llama3.2:3b: template",
        "llama3.2:3b",
    ]


def test_of_several_names_the_plainest_is_the_model_s(store: Path, tmp_path: Path) -> None:
    for name in ("hf.co/org/repo:Q4_K_M", "smol:latest", "me/smol:v1", "another-smol:1b"):
        add_model(store, name, weights())
    add_model(store, "big:8b-q4", weights(2))
    add_model(store, "big:8b", weights(2), {"system": "Be kind."})
    result = ollama.read(store)
    assert {name: model["aliases"] for name, model in result.models.items()} == {
        "big:8b": ["big:8b-q4"],
        "smol:latest": ["smol", "another-smol:1b", "me/smol:v1", "hf.co/org/repo:Q4_K_M"],
    }
    notes = {remark.path: remark.message for remark in result.remarks if not remark.lost}
    assert notes["smol:latest"] == (
        "the same files and settings as another-smol:1b, me/smol:v1, hf.co/org/repo:Q4_K_M: "
        "one model, with aliases"
    )
    assert "big:8b-q4" in notes["big:8b"]
    text = written.text_of(result, tmp_path / "o.yaml", {}, elsewhere=False)
    assert "# note: smol:latest: the same files" in text


def test_what_is_told_of_a_name_that_is_merged_is_kept(store: Path) -> None:
    add_model(store, "a:latest", weights(), {"template": "{{ .Prompt }}"})
    add_model(store, "me/b:v1", weights(), {"template": "{{ .Prompt }}", "system": "Be kind."})
    result = ollama.read(store)
    assert [(remark.path, remark.model) for remark in result.remarks] == [
        ("a:latest: template", "a:latest"),
        ("me/b:v1: system", "a:latest"),
        ("a:latest", "a:latest"),
    ]


def test_the_same_files_with_other_parameters_are_two_models(store: Path) -> None:
    add_model(store, "a:latest", weights())
    add_model(store, "b:latest", weights(), {"params": {"num_ctx": 512}})
    assert list(ollama.read(store).models) == ["a:latest", "b:latest"]


def break_blob(store: Path, manifest: Path) -> None:
    (store / "blobs" / blob(store, weights(9))["digest"].replace(":", "-")).unlink()


def shorten_blob(store: Path, manifest: Path) -> None:
    path = store / "blobs" / blob(store, weights(9))["digest"].replace(":", "-")
    path.write_bytes(path.read_bytes()[:-1])


def cut_manifest(store: Path, manifest: Path) -> None:
    manifest.write_text(manifest.read_text()[:100])


def empty_manifest(store: Path, manifest: Path) -> None:
    manifest.write_text("{}")


def no_digest(store: Path, manifest: Path) -> None:
    manifest.write_text('{"layers": [{"mediaType": "x", "digest": "sha256:../../etc/passwd"}]}')


def folder(store: Path, manifest: Path) -> None:
    manifest.write_bytes(b"\xff" * 10)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_blob, "is missing"),
        (shorten_blob, "bytes; `ollama pull` mends it"),
        (cut_manifest, "is no JSON object"),
        (empty_manifest, "names no layers"),
        (no_digest, "without a type or a digest"),
        (folder, "is no JSON object"),
    ],
)
def test_a_broken_model_is_named_and_the_rest_imported(store: Path, damage: Any, reason: str) -> None:
    add_model(store, "good:latest", weights())
    damage(store, add_model(store, "bad:latest", weights(9)))
    result = ollama.read(store)
    assert list(result.models) == ["good:latest"]
    assert result.found == 2
    assert list(lost(result)) == ["bad:latest"]
    assert reason in lost(result)["bad:latest"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a model", "is not a GGUF file"),
        (weights()[:200], "the file ends"),
        (gguf({**LLAMA, "general.architecture": "gptoss"}, BLOCK), "Ollama's own engine"),
        (gguf(LLAMA, [*BLOCK, ("v.blk.0.attn_q.weight", [4, 4], 0)]), "vision or audio"),
        (None, "no GGUF file"),
    ],
)
def test_files_that_llama_cpp_would_not_load(store: Path, content: bytes | None, reason: str) -> None:
    layers = {"tensor": b"x"} if content is None else {}
    add_model(store, "odd:latest", content, layers)
    result = ollama.read(store)
    assert result.models == {}
    assert reason in lost(result)["odd:latest"]


def test_a_model_of_the_cloud(store: Path) -> None:
    add_model(store, "big:cloud", None, remote_host="https://ollama.com", remote_model="big")
    assert "a cloud model" in lost(ollama.read(store))["big:cloud"]


def test_digests_are_verified_when_asked(store: Path) -> None:
    add_model(store, "good:latest", weights())
    add_model(store, "bad:latest", weights(9))
    path = store / "blobs" / blob(store, weights(9))["digest"].replace(":", "-")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert len(ollama.read(store).models) == 2
    result = ollama.read(store, verify=True)
    assert list(result.models) == ["good:latest"]
    assert "sha256" in lost(result)["bad:latest"]


def test_what_is_no_store_or_an_empty_one(store: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model store of Ollama.*--store"):
        ollama.read(store)
    (store / "manifests" / "registry.ollama.ai" / "library").mkdir(parents=True)
    with pytest.raises(ConfigError, match="has no models"):
        ollama.read(store)


def test_a_folder_that_cannot_be_read_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_model(store, "good:latest", weights())
    folder = add_model(store, "hidden/bad:latest", weights(9)).parent
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        """What everybody but root, who may run this test, gets of a folder without permissions."""
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    result = ollama.read(store)
    assert list(result.models) == ["good:latest"]
    assert "Permission denied" in lost(result)[str(folder)]


def test_where_the_store_is(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert ollama.default_store(home) == tmp_path / ".ollama" / "models"
    assert ollama.default_store({**home, "OLLAMA_MODELS": "/var/models"}) == Path("/var/models")


def test_odd_parameters_are_told(store: Path) -> None:
    params = {"num_ctx": "many", "num_gpu": 99, "main_gpu": 1, "use_mlock": False, "num_batch": 256}
    add_model(store, "a:latest", weights(), {"params": params, "novelty": b"x"})
    add_model(store, "b:latest", weights(), {"params": b"[1]"})
    result = ollama.read(store)
    assert result.models["a:latest"]["parameters"] == {"batch": 256}
    assert list(lost(result)) == ["a:latest: num_ctx", "a:latest: main_gpu", "a:latest: novelty", "b:latest"]
