"""What the cache holds, and what goes to make room: never what is in use, the longest unused first."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from modelyard.errors import ChecksumMismatch, DiskFull
from modelyard.store import Store, StoredFile, Terms
from modelyard.store import disk as disks
from store.byte_source import Bytes, weights
from store.test_store import small_disk

__all__ = ["small_disk"]

SIZE = 2000
NAMES = ("a", "b", "c", "d")
CONTENT = {name: weights(name, SIZE) for name in NAMES}
ANY = Terms()


@contextmanager
def opened(root: Path, quota: int = 0, content: dict[str, bytes] | None = None) -> Iterator[Store]:
    with closing(Store(root, [Bytes(CONTENT if content is None else content)], quota=quota)) as store:
        yield store


async def fetched(store: Store, *names: str, user: str = "m") -> list[StoredFile]:
    """These, used in this order, each a minute after the one before."""
    files = [await store.fetch(f"bytes://{name}", ANY) for name in names]
    for number, file in enumerate(files):
        store.shelf.used(file.digest, user)
        moment = time.time() - 60.0 * (len(files) - number)
        os.utime(store._disk.uses / file.digest, (moment, moment))
    return files


def kept(store: Store) -> set[str]:
    return {name for name in NAMES if store.cached(f"bytes://{name}", ANY) is not None}


async def test_what_is_listed(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        a, b = await fetched(store, "a", "b", user="chat")
        store.hold("chat#1", [b])
        first, second = store.shelf.items()
        assert (first.digest, first.path, first.size, first.blob) == (a.digest, a.path, SIZE, True)
        assert (first.sources, first.users, first.kind) == (("bytes://a",), ("chat",), "gguf")
        assert time.time() - first.used == pytest.approx(120, abs=10)
        assert [one.in_use for one in (first, second)] == [False, True]
        store.let_go("chat#1")
        assert not any(one.in_use for one in store.shelf.items())


async def test_the_longest_unused_goes_first_and_comes_back_as_it_was(tmp_path: Path) -> None:
    with opened(tmp_path, quota=2 * SIZE) as store:
        removed: list[Path] = []
        store.shelf.on_removed = removed.append
        a, b = await fetched(store, "a", "b")
        store.shelf.used(a.digest)
        await store.fetch("bytes://c", ANY)
        assert kept(store) == {"a", "c"}
        assert removed == [b.path]
        assert await store.fetch("bytes://b", ANY) == b
        assert len(kept(store)) == 2


async def test_what_is_held_or_kept_by_a_policy_never_goes(tmp_path: Path) -> None:
    with opened(tmp_path, quota=3 * SIZE) as store, opened(tmp_path) as other:
        a, b, _ = await fetched(store, "a", "b", "c")
        assert other.hold("engine", [a])
        store.shelf.kept = lambda: [b.path]
        await store.fetch("bytes://d", ANY)
        assert kept(store) == {"a", "b", "d"}
        assert [item.digest for item, went in other.shelf.prune(other.shelf.items()) if not went] == [
            a.digest
        ]


async def test_a_file_that_does_not_fit_beside_what_is_in_use_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, quota=2 * SIZE + 10) as store:
        a, _ = await fetched(store, "a", "b")
        store.hold("m", [a])
        source = store._sources["bytes"]
        assert isinstance(source, Bytes)
        source.content["d"] = weights("d", SIZE + 20)
        with pytest.raises(
            DiskFull, match=r"needs 2.0 kB, .*of which 2.0 kB are in use and 2.0 kB could be pruned"
        ):
            await store.fetch("bytes://d", ANY)
        assert kept(store) == {"a", "b"}, "what cannot help is not removed"
        assert not list((tmp_path / "work").iterdir())


async def test_nothing_goes_by_itself_without_a_quota(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        await fetched(store, *NAMES)
        assert kept(store) == set(NAMES)


async def test_the_disks_room_counts_what_may_go(small_disk: Path) -> None:
    half = 500_000
    content = {name: weights(name, half if name != "c" else 300_000) for name in NAMES}
    with opened(small_disk, content=content) as store:
        await fetched(store, "a", "c")
        with pytest.raises(
            DiskFull, match="make room and try again; `modelyard cache prune --all` would free 800 kB"
        ):
            await store.fetch("bytes://b", ANY)
        assert kept(store) == {"a", "c"}
    with opened(small_disk, quota=10**9, content=content) as store:
        await store.fetch("bytes://b", ANY)
        assert "b" in kept(store)


async def test_a_dry_run_removes_nothing_and_a_pruned_source_is_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        (a,) = await fetched(store, "a")
        assert [went for _, went in store.shelf.prune(store.shelf.unused(), dry_run=True)] == [True]
        assert kept(store) == {"a"}
        assert store.shelf.unused(older=3600) == []
        assert [went for _, went in store.shelf.prune(store.shelf.unused(older=30))] == [True]
        assert store.shelf.items() == []
        assert not a.path.exists()
        source = store._sources["bytes"]
        assert isinstance(source, Bytes)
        source.content["a"] = CONTENT["b"]
        assert (await store.fetch("bytes://a", ANY)).digest != a.digest


async def test_files_are_meant_by_source_path_digest_and_model(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        (a,) = await fetched(store, "a", user="chat")
        await fetched(store, "b", user="other")
        names = ("bytes://a", str(a.path), a.digest[:6], f"sha256:{a.digest}", "chat")
        found = store.shelf.matching([*names, "no", a.digest[:5]])
        assert {name: [item.digest for item in items] for name, items in found.items()} == {
            **{name: [a.digest] for name in names},
            "no": [],
            a.digest[:5]: [],
        }


async def test_a_running_processes_files_stay_while_another_prunes(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from modelyard.store import Store, StoredFile
store = Store(Path(sys.argv[1]), [])
store.hold("engine", [StoredFile(Path(sys.argv[2]), 1, "")])
print("held", flush=True)
time.sleep(60)
"""
    with opened(tmp_path) as store:
        (a,) = await fetched(store, "a")
        holder = subprocess.Popen([sys.executable, "-c", program, tmp_path, a.path], stdout=subprocess.PIPE)
        try:
            assert holder.stdout is not None
            assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
            assert store.shelf.unused() == []
            assert [went for _, went in store.shelf.prune(store.shelf.items())] == [False]
            assert a.path.exists()
        finally:
            holder.kill()
            holder.communicate()
        assert [went for _, went in store.shelf.prune(store.shelf.unused())] == [True]
        assert not store.hold("engine", [a])


async def test_quarantine_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "QUARANTINE_FILES", 3)
    bad = {str(number): b"page %d" % number for number in range(5)}
    with opened(tmp_path, content=bad) as store:

        async def refused(name: str, said: str) -> None:
            with pytest.raises(Exception, match=said):
                await store.fetch(f"bytes://{name}", ANY)

        for name in bad:
            await refused(name, "set aside")
        quarantine = tmp_path / "quarantine"
        assert {path.read_bytes() for path in quarantine.iterdir()} == {b"page 2", b"page 3", b"page 4"}
        monkeypatch.setattr(disks, "QUARANTINE_BYTES", 13)
        await refused("0", "set aside")
        assert len(list(quarantine.iterdir())) == 2
        monkeypatch.setattr(disks, "QUARANTINE_BYTES", 1)
        await refused("1", "they were removed")
        assert store.shelf.empty_quarantine() == 0


# -- a process that is killed while it publishes ---------------------------------------------------------

_KILLED = """
import asyncio, os, signal, sys
from contextlib import closing
from pathlib import Path
from modelyard.store import Store, Terms
from store.byte_source import Bytes, weights

left = int(sys.argv[2])

def dying(real):
    def call(*args, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    return call

os.fsync = dying(os.fsync)
Path.replace = dying(Path.replace)

async def main():
    with closing(Store(Path(sys.argv[1]), [Bytes({"a": weights("a", 2000)})], quota=10**6)) as store:
        print((await store.fetch("bytes://a", Terms())).digest)

asyncio.run(main())
"""


def test_a_kill_at_any_moment_leaves_whole_files_or_none(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    for moment in range(1, 50):
        root = tmp_path / str(moment)
        done = subprocess.run(
            [sys.executable, "-c", _KILLED, root, str(moment)],
            env=environment, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        for blob in (root / "blobs" / "sha256").iterdir():
            assert sha256(blob.read_bytes()).hexdigest() == blob.name
        with opened(root) as store:
            assert not list((root / "work").iterdir())
            found = asyncio.run(store.fetch("bytes://a", ANY))
            assert found.path.read_bytes() == CONTENT["a"]
        if done.returncode == 0:
            assert moment > 4
            return
        assert done.returncode == -9, done.stderr
    pytest.fail("it was killed each time")


def test_a_checksum_that_is_wrong_twice_keeps_one_copy(tmp_path: Path) -> None:
    wrong = Terms(sha256="0" * 64)

    async def twice(store: Store) -> None:
        for _ in range(2):
            with pytest.raises(ChecksumMismatch):
                await store.fetch("bytes://a", wrong)

    with opened(tmp_path) as store:
        asyncio.run(twice(store))
        assert len(list((tmp_path / "quarantine").iterdir())) == 1
