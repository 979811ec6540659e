"""`modelyard.Translator` with folders and names: fetched and converted once, in the store."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ctranslate2")

import modelyard
from modelyard.errors import BadFile, ChecksumMismatch, InvalidRequest, SourceNotFound
from modelyard.servers.translation import weights
from modelyard.servers.translation.convert import convert
from modelyard.store import Store, Terms
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


def train(folder: Path) -> None:
    """Have its model be another one, in place."""
    path = folder / "model.safetensors"
    found = {name: array.copy() for name, array in weights.read(folder).items()}
    found["lm_head.weight"] = -found["lm_head.weight"]
    random_models.save(path, found)


def test_a_folder_that_was_trained_in_place_is_taken_anew(folder: Path, data: Path) -> None:
    def translated() -> str:
        with modelyard.Translator(folder, "cpu", "float32") as one:
            return one.translate("The red house.", "en", "fr")

    first = translated()
    train(folder)
    second = translated()
    assert second != first
    assert len(made(data)) == 2
    before = {path: path.stat().st_mtime_ns for path in made(data)}
    assert translated() == second
    assert {path: path.stat().st_mtime_ns for path in made(data)} == before
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"fr"', '"de"'))
    with modelyard.Translator(folder, "cpu", "float32") as one:
        assert one.pairs == (("en", "de"),)


async def test_what_a_server_was_given_stays_what_it_was(folder: Path, data: Path) -> None:
    def open() -> None:
        modelyard.Translator(folder, "cpu", "float32").close()

    source, root = str(folder / "model.safetensors"), data / "modelyard" / "store"
    open()
    train(folder)
    with closing(Store(root)) as store:  # nothing that the program saw before binds it
        taken = await store.fetch(source, Terms())
        train(folder)
        await asyncio.to_thread(open)
        with pytest.raises(ChecksumMismatch, match=taken.digest):
            await store.recheck(source, Terms())
    with closing(Store(root)) as store:
        assert [item.digest for item in store.shelf.items() if not item.blob] == [taken.digest]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": None}, "model: None cannot be one; give a folder, or the name of a model, such as"),
        ({"model": 3}, "model: 3 cannot be one"),
        ({"model": ""}, "model: '' cannot be one"),
        ({"device": 0}, "device: 0 cannot be one; give cpu, cuda, cuda:N or auto"),
        ({"dtype": int}, "dtype: <class 'int'> cannot be one; give the name of a type, such as int8"),
        ({"batch_tokens": "9"}, "batch_tokens: '9' cannot be one; give a whole number, or None"),
        ({"batch_tokens": 0}, "batch_tokens: 0 is below 1"),
        ({"beam_size": None}, "beam_size: None cannot be one"),
        ({"beam_size": True}, "beam_size: True cannot be one"),
        ({"engine": 1}, "engine: 1 cannot be one; give ctranslate2, transformers, or None"),
    ],
)
def test_settings_that_cannot_be(folder: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        modelyard.Translator(**{"model": folder, **wrong})
    assert said in told.value.message
    assert told.value.param == next(iter(wrong))


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


def test_a_name_may_be_that_of_one_for_ctranslate2(hub: Hub, folder: Path, tmp_path: Path) -> None:
    with modelyard.Translator(folder, "cpu", "float32") as one:
        text = one.translate("The red house.", "en", "fr")
    (tmp_path / "made").mkdir()
    convert(folder, tmp_path / "made", "float32")
    theirs = random_models.as_ctranslate2_has_it(tmp_path / "made", tmp_path / "theirs")
    for path in theirs.iterdir():
        hub.add(path.name, path.read_bytes(), repo="tiny/opus-mt-en-fr-ct2")
    with modelyard.Translator("tiny/opus-mt-en-fr-ct2", "cpu", "float32") as one:
        assert one.pairs == (("en", "fr"),)
        assert one.translate("The red house.", "en", "fr") == text


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
