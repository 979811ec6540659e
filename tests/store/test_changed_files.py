"""Files are held to the bytes they had: a stat where nothing changed, both digests where something did."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import BadFile, BadGguf, ChecksumMismatch, DownloadFailed
from modelyard.store import LocalFiles, Store, Terms, report
from store.byte_source import Bytes, weights

ONE, TWO = weights("one"), weights("two")
DIGEST, OTHER = sha256(ONE).hexdigest(), sha256(TWO).hexdigest()
SOURCE = "bytes://model"
ANY = Terms()


@pytest.fixture
def source() -> Bytes:
    return Bytes({"model": ONE})


@pytest.fixture
def store(tmp_path: Path, source: Bytes) -> Iterator[Store]:
    with closing(Store(tmp_path / "store", [source, LocalFiles()])) as store:
        yield store


def flip(path: Path, at: int = -1) -> None:
    """Change one byte in place: size and inode stay, and the time of modification is set back."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_an_unchanged_file_costs_no_reading(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(TWO)
    for source in (SOURCE, str(path)):
        found = await store.fetch(source, ANY)
        read = store.hashed
        for _ in range(3):
            assert await store.recheck(source, ANY) == found
            assert store.cached(source, ANY) == found
        assert store.hashed == read


@pytest.mark.parametrize("touch", [os.utime, lambda path: path.chmod(0o600)], ids=["utime", "chmod"])
async def test_a_touched_file_is_read_once_and_used(store: Store, touch: object, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(TWO)
    for source, size in ((SOURCE, len(ONE)), (str(path), len(TWO))):
        found = await store.fetch(source, ANY)
        assert callable(touch)
        touch(found.path)
        read = store.hashed
        assert store.cached(source, ANY) is None
        for _ in range(3):
            assert await store.recheck(source, ANY) == found
        assert store.hashed - read == size


async def test_a_changed_blob_is_set_aside_with_both_digests_and_fetched_anew(
    store: Store, source: Bytes, tmp_path: Path
) -> None:
    found = await store.fetch(SOURCE, ANY)
    flip(found.path)
    assert store.cached(SOURCE, ANY) is None
    with pytest.raises(ChecksumMismatch) as refused:
        await store.recheck(SOURCE, ANY)
    changed = ONE[:-1] + bytes([ONE[-1] ^ 1])
    assert DIGEST in refused.value.message
    assert sha256(changed).hexdigest() in refused.value.message
    aside = tmp_path / "store" / "quarantine" / sha256(changed).hexdigest()
    assert aside.read_bytes() == changed
    assert await store.recheck(SOURCE, ANY) is None
    assert not found.path.exists()
    assert (await store.fetch(SOURCE, ANY)).path.read_bytes() == ONE
    assert source.fetched == ["model", "model"]


async def test_a_changed_file_of_the_user_is_left_alone_and_never_used(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(ONE)
    found = await store.fetch(str(path), ANY)
    path.write_bytes(TWO)
    for _ in range(2):
        with pytest.raises(ChecksumMismatch, match=f"{OTHER}, {DIGEST} was promised.*`sha256: {OTHER}`"):
            await store.recheck(str(path), ANY)
        with pytest.raises(ChecksumMismatch):
            await store.fetch(str(path), ANY)
    assert path.read_bytes() == TWO
    meant = Terms(sha256=OTHER)
    assert (await store.fetch(str(path), meant)).digest == OTHER
    assert await store.recheck(str(path), meant) == store.cached(str(path), ANY) != found


async def test_what_a_version_promises_is_not_read_twice_to_be_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(ONE)
    await store.fetch(str(path), ANY)
    read = store.hashed
    with pytest.raises(ChecksumMismatch, match=f"{DIGEST}, {OTHER} was promised"):
        await store.fetch(str(path), Terms(sha256=OTHER))
    assert store.hashed == read


async def test_a_source_stands_for_the_same_bytes_when_its_file_is_lost(store: Store, source: Bytes) -> None:
    found = await store.fetch(SOURCE, ANY)
    found.path.unlink()
    source.content["model"] = TWO
    with pytest.raises(ChecksumMismatch, match=f"{OTHER}, {DIGEST} was promised"):
        await store.fetch(SOURCE, ANY)
    assert (await store.fetch(SOURCE, Terms(sha256=OTHER))).digest == OTHER
    source.content["model"] = ONE
    assert (await store.fetch(SOURCE, ANY)).digest == DIGEST


async def test_a_blob_that_is_here_is_not_fetched_from_another_source(store: Store, source: Bytes) -> None:
    found = await store.fetch(SOURCE, ANY)
    read = store.hashed
    assert (await store.fetch("bytes://promised", Terms(sha256=DIGEST))).path == found.path
    source.digests["told"] = DIGEST
    assert (await store.fetch("bytes://told", ANY)).path == found.path
    assert source.fetched == ["model"]
    assert store.hashed == read
    flip(found.path)
    with pytest.raises(ChecksumMismatch):
        await store.fetch("bytes://third", Terms(sha256=DIGEST))


async def test_two_sources_of_one_blob_stay_unchanged_when_one_is_read_again(
    store: Store, source: Bytes
) -> None:
    source.content["same"] = ONE
    first = await store.fetch(SOURCE, ANY)
    assert (await store.fetch("bytes://same", ANY)).path == first.path
    read = store.hashed
    assert await store.recheck(SOURCE, ANY) == first
    assert store.hashed == read


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"<!DOCTYPE html>Sign in", BadFile, "an HTML or XML page; a GGUF or safetensors file was expected"),
        (b"", BadFile, "an empty file"),
        (b"\x80\x04K\x01.", BadFile, "a pickle; .*allow_pickle"),
        (ONE[:200], BadGguf, "bytes, [0-9]+ are missing"),
    ],
)
async def test_what_is_no_model_is_set_aside(
    store: Store, source: Bytes, content: bytes, error: type[Exception], said: str, tmp_path: Path
) -> None:
    source.content["model"] = content
    with pytest.raises(error, match=f"^{SOURCE}: .*{said}.*set aside in .*quarantine. Ask again"):
        await store.fetch(SOURCE, ANY)
    assert (tmp_path / "store" / "quarantine" / sha256(content).hexdigest()).read_bytes() == content
    assert not list((tmp_path / "store" / "blobs" / "sha256").iterdir())
    path = tmp_path / "local"
    path.write_bytes(content)
    with pytest.raises(error, match=said):
        await store.fetch(str(path), ANY)
    assert path.read_bytes() == content
    source.content["model"] = ONE
    assert (await store.fetch(SOURCE, ANY)).digest == DIGEST


async def test_no_message_and_no_list_tells_what_a_source_holds_in_secret(
    store: Store, source: Bytes
) -> None:
    secret = "bytes://user:pa55word@host/model"
    source.content["user:pa55word@host/model"] = b"<html>"
    with pytest.raises(BadFile) as bad:
        await store.fetch(secret, ANY)
    source.content["user:pa55word@host/model"] = ONE
    with pytest.raises(ChecksumMismatch) as wrong:
        await store.fetch(secret, Terms(sha256=OTHER))
    found = await store.fetch(secret, ANY)
    listed = str(report.listing(store))
    assert "@host/model" in listed
    flip(found.path)
    with pytest.raises(ChecksumMismatch) as changed:
        await store.recheck(secret, ANY)
    for text in (listed, bad.value.message, wrong.value.message, changed.value.message):
        assert "pa55word" not in text
    assert store.shelf.matching([secret]).keys() == {secret}


async def test_a_pickle_is_for_those_who_take_it(store: Store, source: Bytes) -> None:
    source.content["model"] = b"\x80\x04K\x01."
    found = await store.fetch(SOURCE, Terms(allow_pickle=True))
    assert store.cached(SOURCE, Terms(allow_pickle=True)) == found
    assert store.cached(SOURCE, ANY) is None
    with pytest.raises(BadFile, match="a pickle"):
        await store.fetch(SOURCE, ANY)
    assert found.path.exists(), "it is what it is to be for another version"


@pytest.mark.parametrize("name", ["sha256-{}", "blobs/{}"], ids=["ollama", "hub"])
async def test_a_file_that_is_named_by_its_digest_has_to_have_it(
    store: Store, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name.format(DIGEST)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(TWO)
    link = tmp_path / "model.gguf"
    link.symlink_to(path)
    for source in (str(path), str(link)):
        with pytest.raises(ChecksumMismatch, match=f"{OTHER}, {DIGEST} was promised"):
            await store.fetch(source, ANY)
    path.write_bytes(ONE)
    assert (await store.fetch(str(link), ANY)).path == link


async def test_a_file_that_cannot_be_read_again_is_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await store.fetch(SOURCE, ANY)
    os.utime(found.path)

    real = Path.open

    def refused(path: Path, *args: Any, **more: Any) -> Any:
        if path == found.path:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DownloadFailed, match=f"Permission denied: {found.path}"):
        await store.recheck(SOURCE, ANY)


async def test_blobs_cannot_be_written_by_chance(store: Store) -> None:
    found = await store.fetch(SOURCE, ANY)
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o444
