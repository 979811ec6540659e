"""Files of the store as engines get them, and what is said of those that cannot be used."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from compose.test_refused_starts import GGUF
from modelyard.core.types import Policy, Spec
from modelyard.engines import registry
from modelyard.engines.base import Profile
from modelyard.errors import BadGguf, DownloadFailed
from modelyard.runtime.entries import Entry
from modelyard.runtime.files import StoreFiles
from modelyard.store import Source, Store, Watch

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


def model() -> Entry:
    spec = Spec("m", "d", "llamacpp", source=SOURCE)
    return Entry(spec, Policy(), registry.load()["llamacpp"], Profile("llamacpp", "llamacpp"))


async def test_a_damaged_file_of_the_store_is_fetched_anew_once_it_is_deleted(tmp_path: Path) -> None:
    source = Bytes(GGUF[: len(GGUF) // 2])
    with closing(Store(tmp_path, [source])) as store:
        files = StoreFiles(store)
        with pytest.raises(BadGguf) as refused:
            await files.fetch(model(), lambda step: None)
        with pytest.raises(BadGguf) as known:
            await files.cached(model())
        blob = store.cached(SOURCE)
        assert blob is not None
        assert refused.value.message == known.value.message
        assert known.value.message.startswith(f"{blob.path}: ")
        assert known.value.message.endswith("Delete that file and ask again: it is then fetched anew")
        blob.path.unlink()
        source.content = GGUF
        found = await files.fetch(model(), lambda step: None)
        assert found["model"].size == len(GGUF)
        assert await files.cached(model()) == found


async def test_a_known_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with closing(Store(tmp_path, [Bytes(b"x" * tmp_path.stat().st_size)])) as store:
        blob = (await store.fetch(SOURCE)).path
        blob.unlink()
        blob.mkdir()  # as large as the file was
        with pytest.raises(DownloadFailed, match=f"{blob} cannot be read: Is a directory"):
            await StoreFiles(store).cached(model())
