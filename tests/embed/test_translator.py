"""`modelyard.Translator` with folders and names: fetched and converted once, in the store."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ctranslate2")

import modelyard
from modelyard.errors import BadFile, InvalidRequest, SourceNotFound
from modelyard.servers.translation.convert import convert
from servers.translation import random_models
from store.hub_server import Hub, hub_server

NAME = "tiny/opus-mt-en-fr"
TRAINED = Path(__file__).parents[2] / "examples" / "translation" / "models"


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the store is kept."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_models.marian(tmp_path / "opus-mt-en-fr")


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the folder."""
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for path in folder.iterdir():
            hub.add(path.name, path.read_bytes(), repo=NAME)
        yield hub


def made(data: Path) -> list[Path]:
    """The files that the store keeps."""
    return sorted(path for path in data.rglob("blobs/sha256/*") if path.is_file())


def test_a_folder_is_converted_once(folder: Path, data: Path) -> None:
    with modelyard.Translator(folder, "cpu", "float32") as one:
        text = one.translate("The red house.", "en", "fr")
        assert (one.languages, one.device) == (("en", "fr"), "cpu")
    (converted,) = made(data)
    before = converted.stat().st_mtime_ns
    with modelyard.Translator(str(folder), "cpu", "float32") as one:
        assert one.translate("The red house.", "en", "fr") == text
    assert [path.stat().st_mtime_ns for path in made(data)] == [before]


def test_a_converted_folder_is_used_where_it_lies(folder: Path, data: Path, tmp_path: Path) -> None:
    target = tmp_path / "converted"
    target.mkdir()
    convert(folder, target, "int8")
    with modelyard.Translator(target, "cpu") as one:
        assert one.pairs == (("en", "fr"),)
    assert not data.exists()


def test_a_name_is_that_of_a_model_on_the_hub(hub: Hub, folder: Path, data: Path) -> None:
    with modelyard.Translator(NAME, "cpu", "float32") as one:
        text = one.translate("The red house.", "en", "fr")
    assert hub.asked
    with modelyard.Translator(folder, "cpu", "float32") as one:
        assert one.translate("The red house.", "en", "fr") == text


def test_models_that_were_trained_translate_rightly() -> None:
    with modelyard.Translator(TRAINED / "m2m100", "cpu") as one:
        assert one.batch(["the small house", "das kleine Haus"], ["en", "de"], ["es", "fr"]) == [
            "la casa pequeña",
            "la petite maison",
        ]
        assert one.translate("the red house is old.\n\n  three dogs", "en", "fr") == (
            "la maison rouge est vieille.\n\n  trois chiens"
        )
    with modelyard.Translator(TRAINED / "en-fr", "cpu") as one:
        assert one.translate("the red house is old.", "en", "fr") == "la maison rouge est vieille."


def test_what_was_converted_needs_neither_hub_nor_parent(hub: Hub, data: Path) -> None:
    modelyard.Translator(NAME, "cpu").close()
    asked = len(hub.asked)
    modelyard.Translator(NAME, "cpu").close()
    assert len(hub.asked) == asked


def test_within_a_running_loop(folder: Path) -> None:
    async def inside() -> str:
        with modelyard.Translator(folder, "cpu") as one:
            return one.translate("", "en", "fr")

    assert asyncio.run(inside()) == ""


def test_names_that_mean_nothing(hub: Hub, tmp_path: Path) -> None:
    for name in ("opus", "./opus/en", "a/b/c"):
        with pytest.raises(InvalidRequest, match="is no folder here, and no name on the Hugging Face Hub"):
            modelyard.Translator(name)
    with pytest.raises(SourceNotFound, match="tiny/absent"):
        modelyard.Translator("tiny/absent")


def test_what_is_no_translation_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadFile, match="it is a llama; what translates is of type"):
        modelyard.Translator(folder)
    shutil.rmtree(folder)
    with pytest.raises(InvalidRequest, match="is no folder here"):
        modelyard.Translator(folder)
