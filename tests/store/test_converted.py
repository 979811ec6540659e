"""Folders of translation models, converted once for CTranslate2, and what such a file tells."""

from __future__ import annotations

import asyncio
import json
import shutil
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from modelyard.core.languages import Pairs
from modelyard.core.types import Policy, Spec
from modelyard.engines import registry
from modelyard.engines.base import Profile
from modelyard.errors import BadFile, ConversionFailed, DiskFull
from modelyard.runtime.entries import Entry
from modelyard.runtime.files import StoreFiles
from modelyard.servers.translation import model_bin, packed
from modelyard.servers.translation.convert import convert
from modelyard.store import Derived, Progress, Store, StoredFile, Terms
from modelyard.store.formats import Kind, look
from servers.translation import random_models
from store.test_store import files_below

pytest.importorskip("ctranslate2")
TYPE = "ctranslate2-int8"


async def fetched(store: Store, folder: Path) -> StoredFile:
    def tell(step: Progress) -> None:
        pass

    return await store.sets.fetch(str(folder), Terms(), "a test", tell)


async def test_a_folder_is_converted_once_and_found_again(tmp_path: Path) -> None:
    folder = random_models.m2m100(tmp_path / "m2m100")
    with closing(Store(tmp_path / "store")) as store:
        derived = Derived(store)
        parent = await fetched(store, folder)
        assert derived.cached(parent, TYPE) is None
        both = await asyncio.gather(*(derived.make(parent, TYPE) for _ in range(2)))
        file = both[0]
        assert both[1] == derived.cached(parent, TYPE) == await derived.recheck(parent, TYPE) == file
        assert file.path.parent == tmp_path / "store" / "blobs" / "sha256"
        assert derived.cached(parent, "ctranslate2-float16") is None
        assert not files_below(tmp_path / "store", "work")
        before, after = await store.header(parent), await store.header(file)
        assert after["translation"] == before["translation"]
        translation = after["translation"]
        assert isinstance(translation, dict)
        assert {"en", "fr", "zh"} < {*translation["sources"]} == {*translation["targets"]}
        assert (after["kind"], after["bytes"], after["dtypes"]) == (
            "ctranslate2",
            file.size,
            {"int8": file.size},
        )
        assert isinstance(config := after["config"], dict)
        assert (config["model_type"], config["d_model"]) == ("m2m_100", random_models.D)
    with closing(Store(tmp_path / "store")) as store:
        assert Derived(store).cached(parent, TYPE) == file


async def test_folders_that_differ_in_a_word_are_two_files(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "store")) as store:
        derived, found = Derived(store), []
        for target in ("fr", "de"):
            folder = random_models.marian(tmp_path / target, target=target)
            file = await derived.make(await fetched(store, folder), TYPE)
            assert (await store.header(file))["translation"] == {"sources": ["en"], "targets": [target]}
            found.append(file.digest)
        assert found[0] != found[1]


async def test_what_cannot_be_converted_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    folder = random_models.m2m100(tmp_path / "m2m100")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder_layers": 3}))
    store_root = tmp_path / "store"
    with closing(Store(store_root)) as store:
        derived = Derived(store)
        parent = await fetched(store, folder)
        with pytest.raises(ConversionFailed, match=r"weights are not those of its config\.json"):
            await derived.make(parent, TYPE)
        whole = await fetched(store, random_models.m2m100(tmp_path / "whole"))
        with pytest.raises(ConversionFailed, match="float19"):
            await derived.make(whole, "ctranslate2-float19")
        with pytest.raises(ConversionFailed, match="false ended with 1"):
            await derived.make(parent, TYPE, program="/bin/false")
        assert not files_below(store_root, "blobs", "work")


async def test_a_disk_without_room_is_told_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_models.m2m100(tmp_path / "m2m100")
    with closing(Store(tmp_path / "store")) as store:
        parent = await fetched(store, folder)
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=parent.size))
        with pytest.raises(DiskFull):
            await Derived(store).make(parent, TYPE, program="/bin/false")


async def test_a_folder_that_is_for_ctranslate2_is_kept_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    convert(random_models.group(tmp_path / "group"), tmp_path / "made", "int8")
    folder = random_models.as_ctranslate2_has_it(tmp_path / "made", tmp_path / "theirs")
    spec = Spec("m", "d" * 64, "ctranslate2", str(folder), devices=("ram",))
    entry = Entry(spec, Policy(), registry.load()["ctranslate2"], Profile("ctranslate2", "ctranslate2"))
    pairs = Pairs(frozenset(("en", target) for target in ("fr", "es", "it", "pt")))
    with closing(Store(tmp_path / "store")) as store:
        files = StoreFiles(store)
        lying = await files.lying(entry)
        assert lying is not None
        assert entry.engine.pairs(spec, lying) == pairs
        made = await files.fetch(entry, lambda step: None)
        assert entry.engine.pairs(spec, made) == pairs
        needs = [entry.engine.need(spec, one) for one in (lying, made)]
        assert all(need.known for need in needs)
        assert needs[0].bytes == pytest.approx(needs[1].bytes, rel=0.01)
        weights = (folder / "model.bin").read_bytes()
        assert made["model"].path.read_bytes()[: len(weights)] == weights


def test_a_file_is_judged_by_its_bytes(tmp_path: Path) -> None:
    folder, path, out = random_models.nllb(tmp_path / "nllb"), tmp_path / "packed", tmp_path / "out"
    packed.pack(folder, path, "int8")
    assert look(path).kind is Kind.CTRANSLATE2
    out.mkdir()
    packed.unpack(path, out)
    assert (out / "model.bin").resolve() == path
    assert {one.name for one in out.iterdir()} > {"config.json", "shared_vocabulary.json"}
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(BadFile, match="not whole"):
        look(path)
    with pytest.raises(BadFile, match="not whole"):
        packed.unpack(path, out)


def weights_alone(tmp_path: Path) -> bytes:
    """A model.bin of CTranslate2, with nothing behind it."""
    packed.pack(random_models.marian(tmp_path / "marian"), tmp_path / "whole", "int8")
    with (tmp_path / "whole").open("rb") as file:
        end = model_bin.read(file).end
    return (tmp_path / "whole").read_bytes()[:end]


def test_a_model_bin_is_known_by_its_end(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    content = weights_alone(tmp_path)
    path.write_bytes(content)
    found = look(path)
    assert found.kind is Kind.CTRANSLATE2
    assert isinstance(config := found.facts["config"], dict)
    assert (config["d_model"], config["decoder_layers"]) == (random_models.D, random_models.LAYERS)
    assert found.facts["dtypes"] == {"int8": len(content)}
    for wrong in (content[:-1], content[: len(content) // 2], content[:30], content + b"x"):
        path.write_bytes(wrong)
        with pytest.raises(BadFile, match="not whole"):
            look(path)
    name, shape = b"decoder/embeddings/weight\0", content.partition(b"decoder/embeddings/weight\0\2")[2][:8]
    path.write_bytes(content.replace(name + b"\2" + shape, name + b"\1" + shape[:4]))
    with pytest.raises(BadFile, match="not whole"):
        look(path)
    for version in (3, 7):
        path.write_bytes(bytes([version]) + content[1:])
        assert look(path).kind is Kind.OTHER


@pytest.mark.parametrize("facts", ["[]", "{}", '{"config": 1}', "x", '{"config": {}, "translation": []}'])
def test_a_strangers_facts_are_not_believed(tmp_path: Path, facts: str) -> None:
    path = tmp_path / "packed"
    path.write_bytes(weights_alone(tmp_path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(packed.FACTS, facts)
    with pytest.raises(BadFile):
        look(path)


@pytest.mark.parametrize("place", ["method", "content"])
def test_an_archive_that_is_damaged_is_no_model(tmp_path: Path, place: str) -> None:
    path, out = tmp_path / "packed", tmp_path / "out"
    out.mkdir()
    path.write_bytes(weights_alone(tmp_path))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(packed.FACTS, '{"config": {}, "translation": {"sources": [], "targets": []}}')
        (member,) = archive.infolist()
    content = bytearray(path.read_bytes())
    if place == "method":
        content[content.rindex(b"PK\x01\x02") + 10] = 99
    else:
        content[member.header_offset + 30 + len(member.filename)] = 0xFF
    path.write_bytes(content)
    with pytest.raises(BadFile):
        look(path)
    with pytest.raises(BadFile):
        packed.unpack(path, out)


def test_names_lead_nowhere_else(tmp_path: Path) -> None:
    path, out = tmp_path / "packed", tmp_path / "out"
    out.mkdir()
    path.write_bytes(weights_alone(tmp_path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../escaped", "x")
    with pytest.raises(BadFile):
        packed.unpack(path, out)
    assert not (tmp_path / "escaped").exists()


def test_where_it_cannot_be_written_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_models.marian(tmp_path / "marian")
    assert packed.main([str(folder), str(tmp_path / "nowhere" / "packed"), "int8"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "nowhere" in line


async def test_a_version_tells_what_it_translates_before_it_is_converted(tmp_path: Path) -> None:
    folder = random_models.marian(tmp_path / "marian")
    spec = Spec("m", "d" * 64, "ctranslate2", str(folder), devices=("ram",))
    entry = Entry(spec, Policy(), registry.load()["ctranslate2"], Profile("ctranslate2", "ctranslate2"))
    with closing(Store(tmp_path / "store")) as store:
        files = StoreFiles(store)
        assert await files.cached(entry) is None
        lying = await files.lying(entry)
        assert lying is not None
        assert lying["model"].path == folder
        assert entry.engine.pairs(spec, lying) == Pairs(frozenset({("en", "fr")}))
        made = entry.files = await files.fetch(entry, lambda step: None)
        assert made["model"].header["kind"] == "ctranslate2"
        assert await files.cached(entry) == made
        assert await files.recheck(entry, "a test")
        files.let_go("a test")
        assert entry.pairs == entry.engine.pairs(spec, lying)
        assert entry.engine.need(spec, made).known
        assert entry.engine.need(spec, lying).bytes >= entry.engine.need(spec, made).bytes * 0.9
