"""Folders as sources: which files come, how they come, what changes and goes, and what they tell."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from modelyard.errors import (
    BadFile,
    ChecksumMismatch,
    DiskFull,
    DownloadFailed,
    SourceNotFound,
    SourceOffline,
    StoreError,
)
from modelyard.store import (
    HubFiles,
    LocalFiles,
    ObjectFiles,
    Progress,
    Store,
    StoredFile,
    Terms,
    folders,
    report,
    verify,
)
from modelyard.store.folders import Member
from modelyard.store.pace import BadAnswer, Pace
from store.front import Reply, front_of
from store.hub_server import COMMIT, OTHER_COMMIT, REPO, Hub, hub_server
from store.model_folder import ELEMENTS, NEEDED, OTHERS, WEIGHTS, lay
from store.origins import Files, source_at
from store.s3_server import S3Server
from store.test_changed_files import flip

ANY = Terms()
SOURCE = f"hf://{REPO}"
SIZE = sum(map(len, NEEDED.values()))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub_server() as hub:
        for name, content in (NEEDED | OTHERS).items():
            hub.add(name, content)
        yield hub


@pytest.fixture
def environ(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}


@pytest.fixture
def store(tmp_path: Path, environ: dict[str, str]) -> Iterator[Store]:
    with opened(tmp_path / "store", environ) as store:
        yield store


def opened(root: Path, environ: dict[str, str], quota: int = 0) -> closing[Store]:
    return closing(Store(root, [HubFiles(environ, Pace(pauses=())), LocalFiles()], quota=quota))


async def fetched(store: Store, source: str = SOURCE, terms: Terms = ANY) -> StoredFile:
    file = await store.sets.fetch(source, terms, "a test", lambda _: None)
    store.let_go("a test")
    return file


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def blobs(root: Path) -> set[str]:
    return {path.name for path in (root / "blobs" / "sha256").iterdir()}


# -- of a repository -------------------------------------------------------------------------------------


async def test_a_repository_is_a_folder_with_what_a_model_needs(store: Store, hub: Hub) -> None:
    hub.repos[REPO].card = {"license": "mit"}
    assert store.sets.cached(SOURCE, ANY) is None
    file = await fetched(store)
    assert content(file.path) == NEEDED
    assert (file.size, file.licence) == (SIZE, "mit")
    asked = len(hub.asked)
    assert (
        store.sets.cached(SOURCE, ANY)
        == await store.sets.recheck(SOURCE, ANY)
        == await fetched(store)
        == file
    )
    assert store.sets.lying(SOURCE, ANY) == file
    assert len(hub.asked) == asked
    digests = sorted((name, sha256(one).hexdigest()) for name, one in NEEDED.items())
    assert file.digest == sha256("\n".join(f"{one} {name}" for name, one in digests).encode()).hexdigest()


async def test_what_its_files_tell(store: Store) -> None:
    header = await store.header(await fetched(store))
    config = header.pop("config") if isinstance(header, dict) else {}
    assert header == {
        "kind": "safetensors",
        "bytes": 4 * ELEMENTS,
        "parameters": 2 * ELEMENTS,
        "dtypes": {"BF16": 2 * ELEMENTS},
    }
    assert (config["model_type"], config["max_position_embeddings"]) == ("llama", 2048)
    assert config["id2label"] is None


async def test_asking_tells_the_same_and_fetches_nothing(store: Store, tmp_path: Path, hub: Hub) -> None:
    hub.repos[REPO].card = {"license": "mit"}
    head = await store.sets.ask(SOURCE, ANY, 20)
    assert not blobs(tmp_path / "store")
    assert not list((tmp_path / "store" / "sources").iterdir())
    file = await fetched(store)
    assert (head.size, head.header, head.licence) == (SIZE, await store.header(file), "mit")
    assert await store.sets.ask(SOURCE, ANY, 20) == replace(head, licence="mit")


async def test_a_folder_of_a_repository_at_a_revision(store: Store, hub: Hub) -> None:
    for name, one in NEEDED.items():
        hub.add(f"a/b/{name}", one, commit=OTHER_COMMIT)
    hub.repos[REPO].revisions["v1"] = OTHER_COMMIT
    file = await fetched(store, f"hf://{REPO}@v1/a/b/")
    assert content(file.path) == NEEDED
    with pytest.raises(SourceNotFound, match="has no folder b/"):
        await fetched(store, f"hf://{REPO}@v1/b/")
    with pytest.raises(SourceNotFound, match="has no file a/b; it is a folder: write a/b/"):
        await fetched(store, f"hf://{REPO}@v1/a/b")


async def test_all_files_are_of_the_commit_that_was_first_fetched(store: Store, hub: Hub) -> None:
    before = await fetched(store)
    hub.repos[REPO].revisions["main"] = OTHER_COMMIT
    hub.repos[REPO].files[OTHER_COMMIT] = {WEIGHTS[0]: b"other"}
    went = store.shelf.prune(store.shelf.items(), forget=False)
    assert all(gone for _, gone in went)
    assert await fetched(store) == before
    assert content(before.path) == NEEDED


async def test_progress_is_of_the_whole_folder(store: Store) -> None:
    steps: list[Progress] = []
    await store.sets.fetch(SOURCE, ANY, "a test", steps.append)
    assert {step.total for step in steps if step.source == SOURCE} == {SIZE}
    assert steps[-1].done == SIZE


async def test_files_in_the_users_own_cache_are_used_there(
    tmp_path: Path, hub: Hub, environ: dict[str, str]
) -> None:
    from huggingface_hub import hf_hub_download

    cache = Path(environ["HF_HOME"]) / "hub"
    for name in NEEDED:
        hf_hub_download(REPO, name, cache_dir=cache, endpoint=hub.url, token=False)
    with opened(tmp_path / "store", environ) as store:
        file = await fetched(store)
        assert content(file.path) == NEEDED
        assert {path.parents[0].name for path in map(Path, file.paths)} >= {COMMIT}
        assert len(blobs(tmp_path / "store")) == 1, "the list alone"
    hub.asked.clear()
    with opened(tmp_path / "offline", {**environ, "HF_HUB_OFFLINE": "1"}) as store:
        assert (await fetched(store)).digest == file.digest
        with pytest.raises(SourceOffline):
            await fetched(store, "hf://other/repo")
    assert not hub.asked


async def test_what_the_users_own_cache_has_of_it_is_not_taken_for_the_whole(
    tmp_path: Path, hub: Hub, environ: dict[str, str]
) -> None:
    from huggingface_hub import hf_hub_download

    cache = Path(environ["HF_HOME"]) / "hub"
    hf_hub_download(REPO, "config.json", cache_dir=cache, endpoint=hub.url, token=False)
    for name in WEIGHTS:
        hf_hub_download(REPO, name, cache_dir=cache, endpoint=hub.url, token=False)
    hub.refusals.append((503, {}))
    with opened(tmp_path / "store", environ) as store:
        with pytest.raises(DownloadFailed):
            await fetched(store)
        assert content((await fetched(store)).path) == NEEDED


# -- which files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "error", "said"),
    [
        (
            {"a.gguf": b"1", "b.gguf": b"2"},
            SourceNotFound,
            rf"name one: hf://{REPO}@{COMMIT}/a\.gguf, .*/b\.gguf$",
        ),
        ({"README.md": b"1", "config.json": b"{}"}, SourceNotFound, r"holds no weights"),
        ({"pytorch_model.bin": b"1"}, BadFile, r"are pickles \(pytorch_model\.bin\).*allow_pickle: true"),
        (
            {WEIGHTS[1]: NEEDED[WEIGHTS[1]]},
            SourceNotFound,
            rf"lacks {WEIGHTS[0]}, which goes with {WEIGHTS[1]}",
        ),
        ({"a/../../b.safetensors": b"1"}, BadAnswer, r"which no folder has"),
        ({"/etc/b.safetensors": b"1"}, BadAnswer, r"which no folder has"),
        ({"a\\b.safetensors": b"1"}, BadAnswer, r"which no folder has"),
        ({"a\n.safetensors": b"1"}, BadAnswer, r"which no folder has"),
        ({f"{'a' * 300}.safetensors": b"1"}, BadAnswer, r"which no folder has"),
        ({f"{number}.json": b"{}" for number in range(1001)}, SourceNotFound, r"more files than a model has"),
    ],
)
async def test_a_folder_that_holds_no_model(
    store: Store, hub: Hub, tmp_path: Path, files: dict[str, bytes], error: type[StoreError], said: str
) -> None:
    hub.repos[REPO].files[COMMIT] = files
    with pytest.raises(error, match=said):
        await store.sets.ask(SOURCE, ANY, 20)
    with pytest.raises(error, match=said):
        await fetched(store)
    assert len(blobs(tmp_path / "store")) <= 1, "the list alone"
    assert not list((tmp_path / "store" / "sets").iterdir())


async def test_pickles_and_code_come_where_they_are_allowed(store: Store, hub: Hub) -> None:
    files = {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04 pickled", "modeling.py": b"code"}
    hub.repos[REPO].files[COMMIT] = files | {"training_args.bin": b"\x80\x04 more"}
    file = await fetched(store, terms=Terms(allow_pickle=True))
    assert content(file.path) == files
    assert await store.header(file) == {"kind": "pickle", "config": {}, "bytes": 10}
    assert store.sets.cached(SOURCE, ANY) is None


async def test_what_is_no_whole_file_of_weights_is_refused(store: Store, hub: Hub, tmp_path: Path) -> None:
    hub.add(WEIGHTS[1], NEEDED[WEIGHTS[1]][:-1])
    with pytest.raises(BadFile, match="1 are missing"):
        await store.sets.ask(SOURCE, ANY, 20)
    with pytest.raises(BadFile, match=rf"{WEIGHTS[1]}: .*1 are missing.*set aside"):
        await fetched(store)
    assert not list((tmp_path / "store" / "sets").iterdir())


def test_weights_come_once() -> None:
    names = ["model.safetensors", "model.fp16.safetensors", "consolidated.safetensors", "adapter.json"]
    members = [Member(name, 1, name) for name in names]
    assert [one.name for one in folders.chosen(members, ANY, "")] == ["adapter.json", "model.safetensors"]
    alone = [Member("consolidated.safetensors", 1, "")]
    assert folders.chosen(alone, ANY, "") == alone


def test_a_list_is_read_as_it_was_written() -> None:
    members = [Member("a/b.json", 3, "s3://b/a?"), Member("é.safetensors", 0, "x")]
    assert folders.of_list(folders.to_list(members)) == members
    for wrong in (b"", b"{}", b"[]", b'{"files":[1]}', b'{"files":[["a","b","c"]]}'):
        with pytest.raises(ValueError):
            folders.of_list(wrong)


@pytest.mark.parametrize("wrong", [b"", b"[1]", b"{", b"[" * 100_000, b"1" * (folders.LONGEST_CONFIG + 1)])
def test_a_config_that_says_nothing(wrong: bytes) -> None:
    assert folders.config_of(wrong) == {}


def test_a_config_is_bounded() -> None:
    told = {
        "a": {"b": {"c": {"d": {"e": 1}}}},
        "long": "x" * 201,
        "list": [1] * 513,
        "text": "y",
        "layers": [1, 2],
    }
    assert folders.config_of(json.dumps(told).encode()) == {
        "a": {"b": {"c": {"d": None}}},
        "long": None,
        "list": None,
        "text": "y",
        "layers": [1, 2],
    }


# -- what is edited, removed, promised -------------------------------------------------------------------


async def test_a_corrupted_file_is_refused_and_fetched_anew(store: Store, hub: Hub, tmp_path: Path) -> None:
    hub.corrupt = True
    with pytest.raises(BadFile, match=rf"{WEIGHTS[0]}: .*zeros alone.*set aside"):
        await fetched(store)
    assert not list((tmp_path / "store" / "sets").iterdir())
    hub.corrupt = False
    assert content((await fetched(store)).path) == NEEDED


async def test_an_edited_file_is_found_and_fetched_anew(store: Store) -> None:
    file = await fetched(store)
    blob = (file.path / "config.json").resolve()
    flip(blob)
    assert [one.item.path for one in [one async for one in verify.verify(store)] if one.problem] == [blob]
    assert await fetched(store) == file
    flip(blob)
    assert store.sets.cached(SOURCE, ANY) is None
    with pytest.raises(ChecksumMismatch, match=r"/config\.json: "):
        await store.sets.recheck(SOURCE, ANY)
    assert await store.sets.recheck(SOURCE, ANY) is None
    assert await fetched(store) == file
    assert content(file.path) == NEEDED


async def test_a_removed_file_takes_the_folder_with_it(store: Store, hub: Hub) -> None:
    file = await fetched(store)
    inner = (file.path / "1_Pooling/config.json").resolve()
    items = [item for item in store.shelf.items() if item.path == inner]
    assert [went for _, went in store.shelf.prune(items, forget=False)] == [True]
    assert not file.path.exists()
    assert store.sets.cached(SOURCE, ANY) is None
    assert store.sets.known(SOURCE, ANY) == file
    hub.asked.clear()
    assert await fetched(store) == file
    assert content(file.path) == NEEDED
    assert {one.path.rpartition("/")[2] for one in hub.requests("GET", cdn=False)} == {"config.json"}


async def test_what_is_held_stays_whole_and_all_goes_by_its_source(store: Store, tmp_path: Path) -> None:
    file = await fetched(store)
    assert store.hold("engine", [file])
    assert not any(went for _, went in store.shelf.prune(store.shelf.items()))
    store.let_go("engine")
    store.shelf.kept = lambda: file.paths  # a policy keeps it
    assert not any(went for _, went in store.shelf.prune(store.shelf.items()))
    store.shelf.kept = tuple
    found = report.prune(store, report.Prune(files=(SOURCE,)))
    assert len(found["removed"]) == len(NEEDED) + 1
    assert not blobs(tmp_path / "store")
    assert not list((tmp_path / "store" / "sets").iterdir())


async def test_what_two_folders_share_stays_while_one_is_used(store: Store, hub: Hub) -> None:
    before = await fetched(store)
    assert store.hold("engine", [before])
    for name, one in NEEDED.items():
        hub.add(name, one, repo="tiny/other")
    other = await fetched(store, "hf://tiny/other")
    assert (other.path, other.digest) == (before.path, before.digest)
    went = store.shelf.prune(store.shelf.items())
    assert [item.kind for item, gone in went if gone] == ["folder"], "the other's list alone"
    assert content(before.path) == NEEDED


async def test_a_lost_link_is_made_anew(store: Store) -> None:
    file = await fetched(store)
    (file.path / "config.json").unlink()
    (file.path / WEIGHTS[0]).unlink()
    (file.path / WEIGHTS[0]).symlink_to("/elsewhere")
    assert await store.sets.recheck(SOURCE, ANY) == file
    assert content(file.path) == NEEDED


async def test_a_quota_that_is_too_small_is_told_before_anything_is_fetched(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    with opened(tmp_path / "small", environ, quota=SIZE - 1) as store:
        with pytest.raises(DiskFull, match=rf"its {len(NEEDED)} files need .*store\.quota"):
            await fetched(store)
        assert len(blobs(tmp_path / "small")) == 1, "the list alone"
    with opened(tmp_path / "large", environ, quota=SIZE + 4000) as store:
        assert (await fetched(store)).size == SIZE


async def test_a_digest_is_promised_of_all(store: Store) -> None:
    digest = (await fetched(store)).digest
    assert (await fetched(store, terms=Terms(sha256=digest))).digest == digest
    wrong = Terms(sha256="0" * 64)
    assert store.sets.cached(SOURCE, wrong) is None
    with pytest.raises(ChecksumMismatch, match=f"sha256 {digest} together, {'0' * 64} was promised"):
        await fetched(store, terms=wrong)


async def test_a_cut_in_the_second_file_of_weights(tmp_path: Path, hub: Hub, environ: dict[str, str]) -> None:
    """What has come is not fetched again, and the folder is not there before it is whole."""
    with opened(tmp_path / "store", environ) as store:
        hub.cuts.extend([10**9] * (len(NEEDED) - 2))  # an empty file is not sent
        hub.cuts.append(1000)
        with pytest.raises(DownloadFailed):
            await fetched(store)
    assert not list((tmp_path / "store" / "sets").iterdir())
    before = blobs(tmp_path / "store")
    assert len(before) == len(NEEDED)
    hub.cuts.clear()
    hub.asked.clear()
    with opened(tmp_path / "store", environ) as store:
        assert content((await fetched(store)).path) == NEEDED
    assert {one.path.rpartition("/")[2] for one in hub.asked} <= {WEIGHTS[1], COMMIT}


# -- on this machine, in a bucket ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["{}", "file://{}", "{}/"])
async def test_a_folder_of_this_machine(tmp_path: Path, shape: str) -> None:
    folder = lay(tmp_path / "model")
    source = shape.format(folder)
    with closing(Store(tmp_path / "store", [LocalFiles()])) as store:
        lying = store.sets.lying(source, ANY)
        assert lying is not None
        assert (lying.size, lying.digest) == (SIZE, "")
        assert (await store.header(lying))["parameters"] == 2 * ELEMENTS
        assert (await store.sets.ask(source, ANY, 10)).header == await store.header(lying)
        file = await fetched(store, source)
        assert content(file.path) == NEEDED
        assert all(path.is_relative_to(folder) for path in file.paths)
        assert store.sets.cached(source, ANY) == await store.sets.recheck(source, ANY) == file
        assert not blobs(tmp_path / "store")
        (folder / "generation_config.json").write_bytes(b"{}")
        assert store.sets.cached(source, ANY) is None
        other = await fetched(store, source)
        assert content(other.path) == NEEDED | {"generation_config.json": b"{}"}
        assert other.digest != file.digest
        flip(folder / WEIGHTS[0])
        with pytest.raises(ChecksumMismatch, match=WEIGHTS[0]):
            await store.sets.recheck(source, ANY)
        order = report.Prune(files=(source,))
        assert len(report.prune(store, order)["removed"]) == len(NEEDED) + 1
        assert content(folder).keys() >= NEEDED.keys(), "files of the user are forgotten alone"
        assert (await fetched(store, source)).digest not in {file.digest, other.digest}


async def test_a_folder_of_this_machine_without_a_model(tmp_path: Path) -> None:
    folder = lay(tmp_path / "model", {"config.json": b"{}"})
    with closing(Store(tmp_path / "store", [LocalFiles()])) as store:
        assert "holds no weights" in (store.sets.problem(str(folder), ANY) or "")
        with pytest.raises(SourceNotFound, match="holds no weights"):
            await fetched(store, str(folder))
        assert store.sets.problem(str(lay(folder)), ANY) is None


async def test_a_name_of_this_machine_that_is_no_text(tmp_path: Path) -> None:
    folder = lay(tmp_path / "model", NEEDED)
    (folder / os.fsdecode(b"\xff.json")).write_bytes(b"{}")
    with closing(Store(tmp_path / "store", [LocalFiles()])) as store:
        assert "which no folder has" in (store.sets.problem(str(folder), ANY) or "")


async def test_links_out_of_a_folder_are_not_followed_round(tmp_path: Path) -> None:
    folder = lay(tmp_path / "model", NEEDED)
    (folder / "round").symlink_to(folder)
    lay(folder / ".git", {"model.safetensors": b"1"})
    with closing(Store(tmp_path / "store", [LocalFiles()])) as store:
        assert content((await fetched(store, str(folder))).path) == NEEDED


async def test_a_folder_in_a_bucket(tmp_path: Path, s3: S3Server) -> None:
    for name, one in (NEEDED | OTHERS).items():
        s3.put(f"tiny #1/{name}", one)
    source = "s3://models/tiny %231/"
    with closing(Store(tmp_path / "store", [ObjectFiles(s3.setting, Pace(pauses=()))])) as store:
        head = await store.sets.ask(source, ANY, 30)
        file = await fetched(store, source)
        assert content(file.path) == NEEDED
        assert (head.size, head.header) == (SIZE, await store.header(file))
        assert store.sets.cached(source, ANY) == await store.sets.recheck(source, ANY) == file
        s3.put("tiny #1/tokenizer.json", b"{}")
        store.shelf.prune(store.shelf.items(), forget=False)
        with pytest.raises(SourceNotFound, match="holds other files than when it was first fetched"):
            await fetched(store, source)
        with pytest.raises(SourceNotFound, match="no folder none/"):
            await fetched(store, "s3://models/none/")


async def test_a_folder_in_a_bucket_of_google(tmp_path: Path) -> None:
    flat = {name: one for name, one in NEEDED.items() if "/" not in name}
    files = Files(flat)

    def answer(method: str, path: str, headers: Mapping[str, str]) -> Reply:
        if "list-type=2" not in path:
            return files.web(method, path, headers)
        entries = "".join(
            f"<Contents><Key>tiny/{name}</Key><Size>{len(one)}</Size><ETag>{escape(files.etag(name))}</ETag>"
            "<LastModified>2026-11-21T10:00:00.000Z</LastModified></Contents>"
            for name, one in flat.items()
        )
        return 200, {}, f"<ListBucketResult>{entries}</ListBucketResult>".encode()

    with front_of(answer) as front:
        google = source_at("gs", front.url, tmp_path, Pace(pauses=()))
        with closing(Store(tmp_path / "store", [google])) as store:
            assert content((await fetched(store, "gs://bucket/tiny/")).path) == flat
