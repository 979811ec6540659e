"""Files of the store as engines get them, and what is said of those that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import pytest

from compose.test_refused_starts import GGUF
from engines.gguf_parts import split_gguf
from modelyard.core.types import Policy, Spec
from modelyard.engines import registry
from modelyard.engines.base import Profile
from modelyard.engines.fake import FakeEngine
from modelyard.errors import BadGguf, ChecksumMismatch, DownloadFailed
from modelyard.gateway.capabilities import capabilities_of
from modelyard.runtime.entries import Entry
from modelyard.runtime.files import StoreFiles
from modelyard.runtime.read_ahead import read_ahead
from modelyard.store import LocalFiles, Source, Store, Terms, Watch
from store.byte_source import Bytes as Many
from store.model_folder import ELEMENTS, NEEDED, lay
from store.test_changed_files import flip
from store.test_quantize import random_gguf

SOURCE = "bytes://model"


class Bytes(Source):
    """A source of a few bytes."""

    schemes: ClassVar[tuple[str, ...]] = ("bytes",)

    def __init__(self, content: bytes) -> None:
        self.content = content

    def problem(self, source: str) -> str | None:
        return None

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        path = folder / "download"
        path.write_bytes(self.content)
        return path


def model(**more: Any) -> Entry:
    spec = Spec("m", "d", "llamacpp", source=SOURCE, **more)
    return Entry(spec, Policy(), registry.load()["llamacpp"], Profile("llamacpp", "llamacpp"))


async def test_a_damaged_file_is_set_aside_and_fetched_anew_when_it_is_asked_for_again(
    tmp_path: Path,
) -> None:
    half = GGUF[: len(GGUF) // 2]
    source = Bytes(half)
    with closing(Store(tmp_path, [source])) as store:
        files = StoreFiles(store)
        with pytest.raises(BadGguf, match=f"^{SOURCE}: the file ends .* set aside in {tmp_path}/quarantine"):
            await files.fetch(model(), lambda step: None)
        assert await files.cached(model()) is None
        assert [path.read_bytes() for path in (tmp_path / "quarantine").iterdir()] == [half]
        source.content = GGUF
        found = await files.fetch(model(), lambda step: None)
        assert found["model"].size == len(GGUF)
        assert await files.cached(model()) == found


async def test_what_a_version_demands_of_its_file_is_checked(tmp_path: Path) -> None:
    wrong, right = "0" * 64, sha256(GGUF).hexdigest()
    with closing(Store(tmp_path, [Bytes(GGUF)])) as store:
        files = StoreFiles(store)
        with pytest.raises(ChecksumMismatch, match=f"{right}, {wrong} was promised"):
            await files.fetch(model(sha256=wrong), lambda step: None)
        fetched = await files.fetch(model(sha256=right), lambda step: None)
        assert await files.cached(model(sha256=wrong)) is None
        assert await files.cached(model(sha256=right)) == fetched
        assert await files.fetch(model(), lambda step: None) == fetched


async def test_files_that_cannot_be_opened_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Store(tmp_path, [Bytes(GGUF)])) as store:
        found = await store.fetch(SOURCE, Terms())
        (tmp_path / "headers").rmdir()
        real = Path.open

        def refused(path: Path, *args: Any, **more: Any) -> Any:
            if path == found.path:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **more)

        monkeypatch.setattr(Path, "open", refused)
        with pytest.raises(DownloadFailed, match=f"{found.path} cannot be read: Permission denied"):
            await StoreFiles(store).cached(model())


async def test_a_model_in_several_files_is_one_file_to_its_engine(tmp_path: Path) -> None:
    whole = random_gguf(tmp_path / "whole.gguf")
    paths = split_gguf(whole, tmp_path, 3)
    content = {path.name: path.read_bytes() for path in paths}
    with closing(Store(tmp_path / "store", [Many(content), LocalFiles()])) as store:
        files = StoreFiles(store)
        entry, alone = model(), model()
        entry.spec = replace(entry.spec, source=f"bytes://{paths[0].name}")
        alone.spec = replace(entry.spec, source=str(whole))
        assert await files.cached(entry) is None
        found = entry.files = await files.fetch(entry, lambda step: None)
        assert await files.cached(entry) == await files.lying(entry) == found
        file = found["model"]
        assert file.path not in file.paths
        assert [path.read_bytes() for path in file.paths] == list(content.values())
        assert file.size == sum(map(len, content.values()))
        need = entry.engine.need(entry.spec, found).bytes
        assert need == entry.engine.need(alone.spec, await files.fetch(alone, lambda step: None)).bytes
        assert await files.recheck(entry, "engine")
        assert {(item.users, item.in_use) for item in store.shelf.items() if item.blob} == {(("m",), True)}
        files.let_go("engine")
        flip(file.paths[2])
        with pytest.raises(ChecksumMismatch, match=r"bytes://model-00003-of-00003\.gguf"):
            await files.recheck(entry, "engine")
        files.let_go("engine")
        assert await files.fetch(entry, lambda step: None) == found


class TakesFolders(FakeEngine):
    """The fake engine with files, for what any engine does with them."""

    def sources(self, spec: Spec) -> Mapping[str, str]:
        return {"model": spec.source}


async def test_a_folder_is_one_file_to_its_engine(tmp_path: Path) -> None:
    folder = lay(tmp_path / "model")
    spec = Spec("m", "d", "fake", source=str(folder))
    entry = Entry(spec, Policy(), TakesFolders(), Profile("fake", "fake"))
    with closing(Store(tmp_path / "store")) as store:
        files = StoreFiles(store)
        assert await files.cached(entry) is None
        lying = await files.lying(entry)
        asked = await files.ask(entry, 10)
        found = entry.files = await files.fetch(entry, lambda step: None)
        file = found["model"]
        assert {path.name for path in file.path.iterdir()} == {name.partition("/")[0] for name in NEEDED}
        assert {path.read_bytes() for path in file.paths} == set(NEEDED.values())
        assert lying is not None
        for early in (lying["model"], asked["model"]):
            assert (early.size, early.header) == (file.size, file.header)
        assert file.header["parameters"] == 2 * ELEMENTS
        told = capabilities_of(entry).files
        assert told is not None
        assert (told.architecture, told.quantization, told.trained_context) == ("llama", "bf16", 2048)
        assert read_ahead(file.paths, 1, Event()) == 0
        assert await files.recheck(entry, "engine")
        files.let_go("engine")
        (folder / "tokenizer_config.json").write_text("{}")
        assert not await files.recheck(entry, "engine"), "there is one file more"
        files.let_go("engine")
        entry.files = await files.fetch(entry, lambda step: None)
        assert await files.recheck(entry, "engine")
        flip(folder / "config.json")
        with pytest.raises(ChecksumMismatch, match=r"config\.json"):
            await files.recheck(entry, "engine")


async def test_parts_that_lie_here_tell_their_need_unread(tmp_path: Path) -> None:
    whole = random_gguf(tmp_path / "whole.gguf")
    entry, alone = model(), model()
    entry.spec = replace(entry.spec, source=str(split_gguf(whole, tmp_path, 3)[0]))
    alone.spec = replace(entry.spec, source=str(whole))
    with closing(Store(tmp_path / "store")) as store:
        files = StoreFiles(store)
        lying, one = await files.lying(entry), await files.lying(alone)
        assert lying is not None
        assert one is not None
        assert entry.engine.need(entry.spec, lying).bytes == entry.engine.need(alone.spec, one).bytes
        assert store.hashed == 0
