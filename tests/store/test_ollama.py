"""Models of Ollama's registry: the one layer that holds the weights, as its manifest promises it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from modelyard.errors import ChecksumMismatch, DownloadFailed, SourceNotFound
from modelyard.store import OllamaModels, Store, StoredFile
from modelyard.store.ollama import OllamaModel
from modelyard.store.pace import Pace
from store.front import Front, Reply, front_of
from store.origins import LAYER, LOCAL, Files

CONTENT = b"weights" * 1000
DIGEST = sha256(CONTENT).hexdigest()


@pytest.fixture
def files() -> Files:
    return Files({"model": CONTENT})


@pytest.fixture
def front(files: Files) -> Iterator[Front]:
    with front_of(files.ollama) as front:
        yield front


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def fetched(root: Path, front: Front, name: str = "tiny/model") -> StoredFile:
    source = OllamaModels(LOCAL, Pace(pauses=()), {"HOME": str(root.parent)})
    with closing(Store(root, [source])) as store:
        text = f"ollama+http://{front.url.removeprefix('http://')}/{name}"
        return await asyncio.wait_for(store.fetch(text), 20)


async def test_the_weights_alone_are_fetched(root: Path, front: Front) -> None:
    file = await fetched(root, front)
    assert (file.digest, file.licence) == (DIGEST, "")
    assert [one.path for one in front.asked] == [
        "/v2/tiny/model/manifests/latest",
        f"/v2/tiny/model/blobs/sha256:{sha256(b'').hexdigest()}",  # its licence
        f"/v2/tiny/model/blobs/sha256:{DIGEST}",
    ]


async def test_the_licence_is_told_by_its_first_line(root: Path, front: Front, files: Files) -> None:
    files.licence = b"\n  TINY COMMUNITY \x00LICENCE\xff\n\nText." + b" more" * 100_000
    assert (await fetched(root, front)).licence == "TINY COMMUNITY LICENCE\ufffd"
    with closing(Store(root, [])) as store:
        cached = store.cached(f"ollama+http://{front.url.removeprefix('http://')}/tiny/model")
    assert cached is not None
    assert cached.licence == "TINY COMMUNITY LICENCE\ufffd", "it is kept"


async def test_weights_of_the_users_own_store_are_used_where_they_lie(root: Path, front: Front) -> None:
    blob = root.parent / ".ollama" / "models" / "blobs" / f"sha256-{DIGEST}"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT[:-1])
    assert (await fetched(root, front)).path != blob, "it is not whole"
    blob.write_bytes(CONTENT)
    assert (await fetched(root.with_name("second"), front)).path == blob
    blob.write_bytes(CONTENT[::-1])
    with pytest.raises(ChecksumMismatch, match=f"Mend or delete {blob}"):
        await fetched(root.with_name("third"), front)


async def test_a_model_that_is_not_there(root: Path, front: Front) -> None:
    with pytest.raises(SourceNotFound, match="has no model tiny/none:3b; check both names"):
        await fetched(root, front, "tiny/none:3b")


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"<html>", DownloadFailed, "what is no manifest"),
        (b"[" * 100_000, DownloadFailed, "what is no manifest"),
        (b" " * 2**21, DownloadFailed, "what is no manifest"),
        (b"[]", SourceNotFound, "no weights in one file"),
        (b'{"layers": [1, {}, {"mediaType": 3}]}', SourceNotFound, "no weights in one file"),
        (
            b'{"layers": [{"mediaType": "%b.model", "digest": "sha256:../../x", "size": 1}]}',
            SourceNotFound,
            "no weights",
        ),
    ],
)
async def test_manifests_that_are_none(
    root: Path, front: Front, body: bytes, kind: type[Exception], said: str
) -> None:
    front.backend = lambda *asked: (200, {}, body.replace(b"%b", LAYER.encode()))
    with pytest.raises(kind, match=said):
        await fetched(root, front)


async def test_a_model_in_several_parts(root: Path, front: Front) -> None:
    layer = {"mediaType": f"{LAYER}.model", "digest": f"sha256:{DIGEST}", "size": 1}
    front.backend = lambda *asked: (200, {}, json.dumps({"layers": [layer, layer]}).encode())
    with pytest.raises(SourceNotFound, match="several parts, which are not fetched together"):
        await fetched(root, front)


async def test_a_blob_of_another_size_than_the_manifest_says(root: Path, front: Front, files: Files) -> None:
    def registry(method: str, path: str, headers: Mapping[str, str]) -> Reply:
        status, said, body = files.ollama(method, path, headers)
        return status, said, body.replace(b"7000", b"7001")

    front.backend = registry
    with pytest.raises(SourceNotFound, match="has 7000 bytes now"):
        await fetched(root, front)


async def test_a_tag_that_moves_is_not_followed(root: Path, front: Front, files: Files) -> None:
    (await fetched(root, front)).path.unlink()
    files.contents["model"] = CONTENT[::-1]
    with pytest.raises(SourceNotFound):
        await fetched(root, front)
    with pytest.raises(SourceNotFound, match=r"is sha256 .* now; name that, or another tag"):
        await fetched(root, front, f"tiny/model#sha256={DIGEST}")


@pytest.mark.parametrize(
    ("source", "manifest"),
    [
        ("ollama://qwen3", "https://registry.ollama.ai/v2/library/qwen3/manifests/latest"),
        ("ollama://qwen3:0.6b", "https://registry.ollama.ai/v2/library/qwen3/manifests/0.6b"),
        ("ollama://ada/tiny:1", "https://registry.ollama.ai/v2/ada/tiny/manifests/1"),
        ("ollama://models.lan/ada/tiny", "https://models.lan/v2/ada/tiny/manifests/latest"),
        ("ollama://models:5000/tiny:q4", "https://models:5000/v2/library/tiny/manifests/q4"),
        ("ollama+http://[::1]:5000/ada/tiny", "http://[::1]:5000/v2/ada/tiny/manifests/latest"),
        ("ollama://localhost/tiny", "https://localhost/v2/library/tiny/manifests/latest"),
    ],
)
def test_names(source: str, manifest: str) -> None:
    assert OllamaModel.parse(source).manifest == manifest


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("ollama://", "is not ollama://"),
        ("ollama://a/b/c/d", "is not ollama://"),
        ("ollama://../../etc/passwd", "is not ollama://"),
        ("ollama://tiny?x=1", "is not ollama://"),
        ("ollama://tiny:", "is not ollama://"),
        ("ollama+http://models.lan/ada/tiny", "is not encrypted"),
    ],
)
def test_what_is_wrong_with_a_text(source: str, problem: str) -> None:
    assert problem in (OllamaModels().problem(source) or "")
