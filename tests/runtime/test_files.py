"""Files of the store as engines get them, and what is said of those that cannot be used."""

from __future__ import annotations

from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pytest

from compose.test_refused_starts import GGUF
from modelyard.core.types import Policy, Spec
from modelyard.engines import registry
from modelyard.engines.base import Profile
from modelyard.errors import BadGguf, ChecksumMismatch, DownloadFailed
from modelyard.runtime.entries import Entry
from modelyard.runtime.files import StoreFiles
from modelyard.store import Source, Store, Terms, Watch

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
