"""What is left of downloads counts, is listed, and goes like files of the cache unless it is fetched."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from modelyard.errors import DiskFull, DownloadFailed, InvalidRequest, NotFound
from modelyard.store import Store, Terms, Watch, report
from modelyard.store.partial import State
from modelyard.store.verify import verify
from store.byte_source import Bytes, weights
from store.test_shelf import small_disk
from waiting import until

__all__ = ["small_disk"]

SIZE = 100_000
HALF = SIZE // 2
NAMES = ("a", "b", "c")
CUT = "cut://c"


class Cut(Bytes):
    """A source whose fetches go on from where the last one ended; each is cut half way until `whole` is set,
    and waits there until `going` is."""

    schemes: ClassVar[tuple[str, ...]] = ("cut",)
    resumes: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__({"c": weights("c", SIZE)})
        self.whole = False
        self.going = threading.Event()
        self.going.set()

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        content = self.content["c"]
        self.fetched.append(source)
        watch.progress(0, SIZE)
        data = folder / "data"
        data.write_bytes(content[:HALF])
        State(source, SIZE, "", ((0, HALF),)).write(folder)
        while not self.going.is_set():
            watch.pause(0.01)
        if not self.whole:
            raise DownloadFailed("cut")
        watch.room(folder, HALF)
        data.write_bytes(content)
        return data


@contextmanager
def opened(root: Path, quota: int = 0, cut: Cut | None = None) -> Iterator[Store]:
    files = Bytes({name: weights(name, SIZE) for name in NAMES})
    with closing(Store(root, [files, cut or Cut()], quota=quota)) as store:
        yield store


async def cut_off(store: Store) -> Path:
    """The folder of a download that ended half way."""
    with pytest.raises(DownloadFailed, match="cut"):
        await store.fetch(CUT, Terms())
    (folder,) = (store.verified.parent / "partial").iterdir()
    return folder


def used(path: Path, ago: float) -> None:
    moment = time.time() - ago
    for one in (*path.iterdir(), path) if path.is_dir() else (path,):
        os.utime(one, (moment, moment))


def names(store: Store) -> set[str]:
    return {source for item in store.shelf.items() for source in item.sources}


async def test_it_is_listed_and_counted(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        await cut_off(store)
        found = report.listing(store)
        (file,) = found["files"]
        assert (file["sources"], file["digest"], file["in_use"]) == ([CUT], "", False)
        assert file["unfinished"] == {"done": HALF, "total": SIZE}
        assert HALF <= file["bytes"] < SIZE, "what it takes on the disk"
        assert found["bytes"] == file["bytes"]
        assert [verdict async for verdict in verify(store)] == [], "it has no digest yet"
        await store.fetch("bytes://a", Terms())
        whole = next(file for file in report.listing(store)["files"] if file["digest"])
        assert whole["unfinished"] is None


@pytest.mark.parametrize(
    "order", [report.Prune(everything=True), report.Prune(older=0.0), report.Prune((CUT,))]
)
async def test_it_is_pruned(tmp_path: Path, order: report.Prune) -> None:
    with opened(tmp_path) as store:
        folder = await cut_off(store)
        size = store.shelf.items()[0].size
        dry = report.prune(store, report.Prune(order.files, order.older, order.everything, dry_run=True))
        assert (dry["bytes"], folder.exists()) == (size, True)
        done = report.prune(store, order)
        assert (done["bytes"], folder.exists()) == (size, False)
        assert (tmp_path / "uses").is_dir()
        with pytest.raises(NotFound):
            report.prune(store, report.Prune((CUT,)))


async def test_a_young_one_stays_where_old_ones_go(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        folder = await cut_off(store)
        assert report.prune(store, report.Prune(older=60.0))["removed"] == []
        used(folder, 120)
        assert report.prune(store, report.Prune(older=60.0))["removed"] != []


async def test_what_is_being_fetched_is_never_touched(tmp_path: Path) -> None:
    cut = Cut()
    cut.going.clear()
    with opened(tmp_path, cut=cut) as store, opened(tmp_path) as other:
        fetch = asyncio.create_task(store.fetch(CUT, Terms()))
        await until(lambda: names(other) == {CUT} and other.shelf.items()[0].unfinished.done == HALF)  # type: ignore[union-attr]
        for each in (store, other):
            assert each.shelf.items()[0].in_use
            done = report.prune(each, report.Prune(everything=True))
            assert (done["removed"], done["bytes"]) == ([], 0)
            assert [file["sources"] for file in report.prune(each, report.Prune((CUT,)))["in_use"]] == [[CUT]]
        cut.whole = True
        cut.going.set()
        assert (await fetch).size == SIZE
        assert [item.unfinished for item in other.shelf.items()] == [None]


@pytest.mark.parametrize("older", ["partial", "blob"])
async def test_it_counts_for_the_quota_and_goes_in_its_turn(tmp_path: Path, older: str) -> None:
    with opened(tmp_path, quota=2 * SIZE + HALF) as store:
        folder = await cut_off(store)
        file = await store.fetch("bytes://a", Terms())
        used(folder, 120 if older == "partial" else 60)
        used(tmp_path / "uses" / file.digest, 60 if older == "partial" else 120)
        await store.fetch("bytes://b", Terms())
        assert names(store) == ({"bytes://a", "bytes://b"} if older == "partial" else {CUT, "bytes://b"})


async def test_what_is_being_fetched_leaves_no_room_for_others(tmp_path: Path) -> None:
    cut = Cut()
    cut.going.clear()
    with opened(tmp_path, quota=SIZE + HALF // 2, cut=cut) as store:
        fetch = asyncio.create_task(store.fetch(CUT, Terms()))
        await until(lambda: any(item.size >= HALF for item in store.shelf.items()))
        with pytest.raises(DiskFull, match=r"of which .* are in use and 0 B could be pruned"):
            await store.fetch("bytes://a", Terms())
        cut.whole = True
        cut.going.set()
        assert (await fetch).size == SIZE, "what it has fetched itself does not count twice"


async def test_it_makes_room_on_a_full_disk(small_disk: Path) -> None:
    cut = Cut()
    with opened(small_disk, quota=10**9, cut=cut) as store:
        await cut_off(store)
        source = store._sources["bytes"]
        assert isinstance(source, Bytes)
        source.content["large"] = weights("large", 1_000_000)
        await store.fetch("bytes://large", Terms())
        assert names(store) == {"bytes://large"}


async def test_a_prefix_of_several_digests_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        one, other = f"abcdef{'0' * 58}", f"abcdef{'1' * 58}"
        for digest in (one, other):
            (tmp_path / "blobs" / "sha256" / digest).write_bytes(b"x")
        with pytest.raises(InvalidRequest, match=f"abcdef may be {one} or {other}; write more of it"):
            report.prune(store, report.Prune(("abcdef",)))
        done = report.prune(store, report.Prune(("sha256:abcdef0",)))
        assert [file["digest"] for file in done["removed"]] == [one]
