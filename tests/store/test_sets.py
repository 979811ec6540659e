"""Models in several files: one source, parts that are fetched one by one, and a folder that has them all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from engines.gguf_parts import split_gguf
from modelyard.engines.gguf import facts, read_header
from modelyard.errors import (
    BadGguf,
    ChecksumMismatch,
    DiskFull,
    DownloadFailed,
    QuantizeFailed,
    SourceNotFound,
)
from modelyard.store import (
    Derived,
    HubFiles,
    LocalFiles,
    Progress,
    Store,
    StoredFile,
    Terms,
    report,
    split,
    verify,
)
from modelyard.store.local import absent
from modelyard.store.pace import Pace
from store.byte_source import Bytes
from store.front import Reply, front_of
from store.hub_server import COMMIT, OTHER_COMMIT, REPO, hub_server
from store.origins import SCHEMES, Files, source_at, source_of
from store.s3_server import S3Server
from store.test_changed_files import flip
from store.test_hub import keep
from store.test_quantize import random_gguf, stand_in

ANY = Terms()
NAMES = tuple(f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3))
FIRST = f"bytes://{NAMES[0]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The three parts of a model, and the model itself."""
    folder = tmp_path / "parts"
    folder.mkdir()
    split_gguf(random_gguf(folder / "whole.gguf"), folder, 3, "m")
    return folder


@pytest.fixture
def source(folder: Path) -> Bytes:
    return Bytes({name: (folder / name).read_bytes() for name in NAMES})


@pytest.fixture
def store(tmp_path: Path, source: Bytes) -> Iterator[Store]:
    with closing(Store(tmp_path / "store", [source, LocalFiles()])) as store:
        yield store


async def fetched(store: Store, source: str = FIRST, terms: Terms = ANY) -> StoredFile:
    file = await store.sets.fetch(source, terms, "a test", lambda _: None)
    store.let_go("a test")
    return file


def beside(file: StoredFile) -> list[Path]:
    return [Path(path) for path in split.parts_of(str(file.path))]


# -- one by one ------------------------------------------------------------------------------------------


async def test_parts_are_fetched_and_lie_beside_each_other(store: Store, source: Bytes, folder: Path) -> None:
    assert store.sets.cached(FIRST, ANY) is None
    file = await fetched(store)
    assert source.fetched == list(NAMES)
    assert file.path.name == "model-00001-of-00003.gguf"
    assert [path.read_bytes() for path in beside(file)] == [source.content[name] for name in NAMES]
    assert file.size == sum(map(len, source.content.values()))
    assert (
        store.sets.cached(FIRST, ANY) == await store.sets.recheck(FIRST, ANY) == await fetched(store) == file
    )
    assert source.fetched == list(NAMES)
    whole = facts(read_header(folder / "whole.gguf"))
    assert (await store.header(file))["tensors.total"] == whole["tensors.total"]
    assert (await store.header(file))["vocabulary"] == 320


async def test_a_set_is_named_by_its_content(tmp_path: Path, source: Bytes) -> None:
    with closing(Store(tmp_path / "a", [source])) as one, closing(Store(tmp_path / "b", [source])) as other:
        digests = {(await fetched(store)).digest for store in (one, other)}
        assert len(digests) == 1
        source.content["n" + NAMES[0][1:]] = source.content[NAMES[0]]
        for name in NAMES[1:]:
            source.content["n" + name[1:]] = source.content[name]
        assert (await fetched(one, FIRST.replace("m-", "n-"))).digest in digests
        assert len(list((tmp_path / "a" / "sets").iterdir())) == 1


async def test_a_moved_store_and_lost_links(store: Store, tmp_path: Path, source: Bytes) -> None:
    before = await fetched(store)
    store.close()
    (tmp_path / "store").rename(tmp_path / "moved")
    with closing(Store(tmp_path / "moved", [source])) as moved:
        file = moved.sets.cached(FIRST, ANY)
        assert file is not None
        assert [path.exists() for path in beside(file)] == [True] * 3
        assert file.digest == before.digest
        shutil.rmtree(file.path.parent)
        assert await moved.sets.recheck(FIRST, ANY) == file
        assert [path.exists() for path in beside(file)] == [True] * 3
        assert len(source.fetched) == 3


async def test_a_set_that_cannot_be_made(store: Store, tmp_path: Path) -> None:
    file = await fetched(store)
    shutil.rmtree(file.path.parent)
    file.path.parent.write_bytes(b"")
    with pytest.raises(DownloadFailed, match=f"{file.path} cannot be made: "):
        await store.sets.recheck(FIRST, ANY)


async def test_files_of_this_machine_are_used_where_they_lie(store: Store, folder: Path) -> None:
    first = folder / NAMES[0]
    lying = store.sets.lying(str(first), ANY)
    assert lying is not None
    assert (lying.path, lying.digest, lying.size) == (
        first,
        "",
        sum((folder / name).stat().st_size for name in NAMES),
    )
    file = await fetched(store, first.as_uri())
    assert (file.path, file.paths) == (first, tuple(folder / name for name in NAMES))
    assert not list((folder.parent / "store" / "sets").iterdir())


async def test_a_missing_part_is_named_before_the_first_is_fetched(tmp_path: Path, folder: Path) -> None:
    files = Files({name: (folder / name).read_bytes() for name in NAMES[:2]})
    with front_of(files.web) as front:
        web = source_at("http", front.url, tmp_path, Pace(pauses=()))
        with closing(Store(tmp_path / "store", [web, LocalFiles()])) as store:
            first = source_of("http", front.url, NAMES[0])
            with pytest.raises(SourceNotFound, match=r"m-00003-of-00003\.gguf.*no such file"):
                await store.sets.ask(first, ANY, 10)
            with pytest.raises(SourceNotFound, match=r"m-00003-of-00003\.gguf.*no such file"):
                await fetched(store, first)
            assert not list((tmp_path / "store" / "blobs" / "sha256").iterdir())
            (folder / NAMES[1]).unlink()
            assert NAMES[1] in (split.problem(str(folder / NAMES[0]), absent) or "")
            with pytest.raises(SourceNotFound, match=r"m-00002-of-00003\.gguf does not exist"):
                await fetched(store, str(folder / NAMES[0]))


async def test_asking_tells_the_size_of_all_and_the_header_of_the_first(tmp_path: Path, folder: Path) -> None:
    files = Files({name: (folder / name).read_bytes() for name in NAMES})
    with front_of(files.web) as front:
        web = source_at("http", front.url, tmp_path, Pace(pauses=()))
        with closing(Store(tmp_path / "store", [web])) as store:
            first = source_of("http", front.url, NAMES[0])
            head = await store.sets.ask(first, ANY, 10)
            assert head.size == sum(map(len, files.contents.values()))
            assert head.header["general.architecture"] == "llama"
            files.contents[NAMES[1]] = files.contents[NAMES[2]]
            with pytest.raises(BadGguf, match=r"m-00002-of-00003\.gguf is expected to be part 2 of 3"):
                await store.sets.ask(first, ANY, 10)


async def test_a_part_that_cannot_be_asked_for_now_is_taken_for_good(tmp_path: Path, folder: Path) -> None:
    files, busy = Files({name: (folder / name).read_bytes() for name in NAMES}), NAMES[2]

    def answer(method: str, path: str, headers: Mapping[str, str]) -> Reply:
        return (503, {}, b"") if path.endswith(busy) else files.web(method, path, headers)

    with front_of(answer) as front:
        web = source_at("http", front.url, tmp_path, Pace(pauses=()))
        with closing(Store(tmp_path / "store", [web])) as store:
            first = source_of("http", front.url, NAMES[0])
            assert (await store.sets.ask(first, ANY, 10)).size == 0
            busy = NAMES[0]
            with pytest.raises(DownloadFailed, match="503"):
                await store.sets.ask(first, ANY, 10)


async def test_progress_is_of_all_parts(tmp_path: Path, folder: Path) -> None:
    files = Files({name: (folder / name).read_bytes() for name in NAMES})
    steps: list[Progress] = []
    with front_of(files.web) as front:
        web = source_at("http", front.url, tmp_path, Pace(pauses=()))
        with closing(Store(tmp_path / "store", [web])) as store:
            first = source_of("http", front.url, NAMES[0])
            file = await store.sets.fetch(first, ANY, "a test", steps.append)
    assert {step.total for step in steps} == {file.size}
    assert steps[-1].done == file.size
    assert {step.source for step in steps} == {first}


async def test_a_digest_is_promised_of_the_first(store: Store, source: Bytes) -> None:
    right = Terms(sha256=sha256(source.content[NAMES[0]]).hexdigest())
    file = await fetched(store, terms=right)
    assert [path.read_bytes() for path in beside(file)] == list(source.content.values())
    assert store.sets.cached(FIRST, right) == file
    with pytest.raises(ChecksumMismatch, match=f"bytes://{NAMES[0]}: .*{'0' * 64} was promised"):
        await fetched(store, terms=Terms(sha256="0" * 64))


async def test_the_parts_are_of_one_commit(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch that moves between two parts does not mix them."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub_server() as hub:
        for name in NAMES:
            hub.add(name, (folder / name).read_bytes())
        files = HubFiles({"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}, Pace(pauses=()))
        with closing(Store(tmp_path / "store", [files])) as store:
            first = f"hf://{REPO}/{NAMES[0]}"
            await store.fetch(first, ANY)
            hub.repos[REPO].revisions["main"] = OTHER_COMMIT
            hub.repos[REPO].files[OTHER_COMMIT] = {}
            file = await fetched(store, first)
            assert [path.read_bytes() for path in beside(file)] == [
                (folder / name).read_bytes() for name in NAMES
            ]
            assert store.sets.cached(first, ANY) == file
            assert {one.split("@")[1][:40] for one in _sources(store) if "@" in one} == {COMMIT}
            order = report.Prune(files=(first,))
            assert len(report.prune(store, order)["removed"]) == 3


@pytest.mark.parametrize("told", [True, False])
async def test_the_licence_of_all_parts_is_asked_for_once(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("modelyard.store.hub_client.LICENCE_WAIT", 5.0 if told else 0.2)
    with hub_server() as hub:
        hub.repos[REPO].card = {"license": "mit"}
        if not told:
            hub.telling.clear()
        for name in NAMES:
            hub.add(name, (folder / name).read_bytes())
        files = HubFiles({"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}, Pace(pauses=()))
        with closing(Store(tmp_path / "store", [files])) as store:
            head = await store.sets.ask(f"hf://{REPO}/{NAMES[0]}", ANY, 10.0)
            assert head.size == sum((folder / name).stat().st_size for name in NAMES)
            file = await fetched(store, f"hf://{REPO}/{NAMES[0]}")
        assert file.licence == ("mit" if told else "")
        assert len([one for one in hub.asked if one.path.startswith("/api/")]) == 1


async def test_parts_in_the_users_own_cache_are_used_there(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub_server() as hub:
        environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        for name in NAMES:
            hub.add(name, (folder / name).read_bytes())
        kept = [keep(hub, environ, name) for name in NAMES]
        with closing(Store(tmp_path / "store", [HubFiles(environ, Pace(pauses=()))])) as store:
            file = await fetched(store, f"hf://{REPO}/{NAMES[0]}")
            assert list(file.paths) == beside(file) == kept
            assert not list((tmp_path / "store" / "blobs" / "sha256").iterdir())
        kept[1].unlink()
        with closing(Store(tmp_path / "other", [HubFiles(environ, Pace(pauses=()))])) as store:
            file = await fetched(store, f"hf://{REPO}/{NAMES[0]}")
            assert [path.readlink() == one for path, one in zip(beside(file), kept, strict=True)] == [
                True,
                False,
                True,
            ]
            assert [path.read_bytes() for path in beside(file)] == [
                (folder / name).read_bytes() for name in NAMES
            ]


def _sources(store: Store) -> list[str]:
    return [source for item in store.shelf.items() for source in item.sources]


@pytest.mark.parametrize("scheme", [one for one in SCHEMES if one != "ollama"])
async def test_every_kind_of_source(scheme: str, tmp_path: Path, folder: Path, s3: S3Server) -> None:
    files = Files({name: (folder / name).read_bytes() for name in NAMES})
    for name in NAMES:
        s3.put(f"folder/{name}", files.contents[name])
    with front_of(files.hub if scheme == "hf" else files.web) as front:
        url = s3.url if scheme == "s3" else front.url
        with closing(Store(tmp_path / "store", [source_at(scheme, url, tmp_path, Pace(pauses=()))])) as store:
            first = source_of(scheme, url, NAMES[0])
            file = await fetched(store, first)
            assert [path.read_bytes() for path in beside(file)] == list(files.contents.values())
            assert store.sets.cached(first, ANY) == await store.sets.recheck(first, ANY) == file


# -- what is edited, removed, cut ------------------------------------------------------------------------


async def test_an_edited_part_is_found_and_fetched_anew(store: Store, source: Bytes) -> None:
    file = await fetched(store)
    flip(file.paths[1])
    assert store.sets.cached(FIRST, ANY) is None
    with pytest.raises(ChecksumMismatch, match=f"bytes://{NAMES[1]}: "):
        await store.sets.recheck(FIRST, ANY)
    assert await store.sets.recheck(FIRST, ANY) is None
    assert await fetched(store) == file
    assert source.fetched == [*NAMES, NAMES[1]]
    assert beside(file)[1].read_bytes() == source.content[NAMES[1]]


async def test_verify_finds_the_part(store: Store) -> None:
    file = await fetched(store)
    flip(file.paths[2])
    verdicts = [one async for one in verify.verify(store)]
    assert [one.item.path for one in verdicts if one.problem] == [file.paths[2]]


async def test_a_removed_part_takes_the_folder_with_it(store: Store, source: Bytes) -> None:
    file = await fetched(store)
    items = [item for item in store.shelf.items() if item.path == file.paths[1]]
    assert [went for _, went in store.shelf.prune(items, forget=False)] == [True]
    assert not file.path.parent.exists()
    assert store.sets.cached(FIRST, ANY) is None
    assert store.sets.known(FIRST, ANY) == file
    assert await fetched(store) == file
    assert source.fetched == [*NAMES, NAMES[1]]
    assert beside(file)[1].read_bytes() == source.content[NAMES[1]]


async def test_what_is_held_stays_whole(store: Store) -> None:
    file = await fetched(store)
    assert store.hold("engine", [file])
    assert all(item.in_use for item in store.shelf.items())
    assert not any(went for _, went in store.shelf.prune(store.shelf.items()))
    store.let_go("engine")
    found = report.prune(store, report.Prune(files=(FIRST,)))
    assert len(found["removed"]) == 3
    assert not list(file.path.parent.parent.iterdir())


async def test_no_part_makes_room_for_the_next(tmp_path: Path, source: Bytes) -> None:
    total = sum(map(len, source.content.values()))
    with closing(Store(tmp_path / "store", [source], quota=total - 1)) as store:
        with pytest.raises(DiskFull):
            await fetched(store)
        assert store.sets.cached(FIRST, ANY) is None
    with closing(Store(tmp_path / "other", [source], quota=total)) as store:
        assert (await fetched(store)).size == total


async def test_a_quota_that_is_too_small_is_told_before_anything_is_fetched(
    tmp_path: Path, folder: Path
) -> None:
    files = Files({name: (folder / name).read_bytes() for name in NAMES})
    total = sum(map(len, files.contents.values()))
    with front_of(files.web) as front:
        web = source_at("http", front.url, tmp_path, Pace(pauses=()))
        with closing(Store(tmp_path / "store", [web], quota=total - 1)) as store:
            with pytest.raises(DiskFull, match=r"its 3 files need .*store\.quota"):
                await fetched(store, source_of("http", front.url, NAMES[0]))
            assert not list((tmp_path / "store" / "blobs" / "sha256").iterdir())


# -- quantized -------------------------------------------------------------------------------------------


async def test_llama_quantize_takes_the_first_part(
    store: Store, source: Bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = "while [ $# -gt 3 ]; do shift; done"
    stand_in(
        tmp_path,
        monkeypatch,
        f'{files}; ls $(dirname $1) > "{tmp_path}/saw"; cp "{tmp_path}/parts/whole.gguf" $2',
    )
    derived, parent = Derived(store), await fetched(store)
    made = await derived.make(parent, "q4_k_m")
    assert (tmp_path / "saw").read_text().split() == [path.name for path in beside(parent)]
    assert derived.cached(parent, "q4_k_m") == made
    assert derived.cached(replace(parent, digest="0" * 64), "q4_k_m") is None


async def test_our_own_tool_refuses_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    parent = await fetched(store)
    with pytest.raises(QuantizeFailed, match="a model in 3 files is quantized by llama-quantize alone"):
        await Derived(store).make(parent, "q8_0")
