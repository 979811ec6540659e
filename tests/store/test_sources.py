"""What every source keeps to that fetches over a network: whole files, each byte once, and clear refusals."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from modelyard.errors import ChecksumMismatch, DiskFull, DownloadFailed, SourceForbidden, SourceNotFound
from modelyard.store import Progress, Store
from modelyard.store.index import key_of
from modelyard.store.pace import Bandwidth, Pace
from store.front import front_of, passed_on
from store.origins import SCHEMES, Files, Origin
from store.s3_server import S3Server
from waiting import until

CONTENT = random.Random(5).randbytes(3_000_000)
DIGEST = sha256(CONTENT).hexdigest()
PIECE = 400_000
PAUSES = (0.0, 0.0, 0.0)
NAME = "tiny.gguf"
PROGRAM = str(Path(__file__).with_name("origins.py"))


@pytest.fixture
def files() -> Files:
    return Files({NAME: CONTENT})


@pytest.fixture(params=SCHEMES)
def origin(request: pytest.FixtureRequest, files: Files, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    monkeypatch.setattr("modelyard.store.transfer.PIECE", PIECE)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", "")
    scheme = request.param
    with ExitStack() as stack:
        if scheme == "s3":
            s3: S3Server = request.getfixturevalue("s3")
            s3.put(f"folder/{NAME}", CONTENT)
            front = stack.enter_context(front_of(passed_on(s3.url)))
            yield Origin(scheme, front, lambda name, content: s3.put(f"folder/{name}", content))
            return
        backend = {"ollama": files.ollama, "hf": files.hub}.get(scheme, files.web)
        front = stack.enter_context(front_of(backend))
        yield Origin(scheme, front, files.contents.__setitem__)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def store_of(root: Path, origin: Origin, *, connections: int = 4, rate: int = 0) -> closing[Store]:
    pace = Pace(connections, Bandwidth(rate), PAUSES)
    return closing(Store(root, origin.sources(root.parent, pace)))


def nothing_kept(root: Path) -> bool:
    return not [
        one for name in ("blobs", "sources", "work") for one in (root / name).rglob("*") if one.is_file()
    ]


async def test_a_large_file_comes_in_parts_over_several_connections(root: Path, origin: Origin) -> None:
    origin.front.rate = 3e6
    steps: list[Progress] = []
    with store_of(root, origin) as store:
        file = await store.fetch(origin.source(), progress=steps.append)
        assert file.path.read_bytes() == CONTENT
        assert (file.size, file.digest) == (len(CONTENT), DIGEST)
        asked = len(origin.front.asked)
        assert await store.fetch(origin.source()) == file
        assert len(origin.front.asked) == asked
    assert 2 <= origin.front.most_busy <= 4
    assert sum(one.sent for one in origin.front.parts if one.sent > 10) == len(CONTENT), "no byte twice"
    assert steps[-1].done == steps[-1].total == len(CONTENT)
    assert not any((root / "partial").iterdir())


async def test_one_connection_is_enough(root: Path, origin: Origin) -> None:
    with store_of(root, origin, connections=1) as store:
        assert (await store.fetch(origin.source())).digest == DIGEST
    assert origin.front.most_busy == 1


async def test_a_small_and_an_empty_file(root: Path, origin: Origin) -> None:
    for name, content in (("small.gguf", b"small"), ("empty.gguf", b"")):
        origin.put(name, content)
        with store_of(root, origin) as store:
            assert (await store.fetch(origin.source(name))).path.read_bytes() == content


async def test_cuts_are_mended(root: Path, origin: Origin) -> None:
    origin.front.cuts.extend([100_000, 0, 0, 250_000, 1])
    with store_of(root, origin) as store:
        assert (await store.fetch(origin.source())).digest == DIGEST
    # Of what is cut, a few bytes may be lost on their way.
    assert origin.front.sent < len(CONTENT) + 5 * 300_000


async def test_a_try_that_fails_leaves_what_came_to_the_next(root: Path, origin: Origin) -> None:
    origin.front.cuts.extend([300_000, *[0] * 40])
    with store_of(root, origin, connections=1) as store:
        with pytest.raises(DownloadFailed, match="try again"):
            await store.fetch(origin.source())
        assert nothing_kept(root)
        origin.front.cuts.clear()
        origin.front.asked.clear()
        assert (await store.fetch(origin.source())).digest == DIGEST
    assert origin.front.sent < len(CONTENT) - 200_000
    assert not any((root / "partial").iterdir())


@pytest.mark.parametrize("origin", ["http", "ollama", "hf"], indirect=True)
async def test_a_length_that_is_a_lie_about_a_part(root: Path, origin: Origin) -> None:
    """What the part really is, is known."""
    origin.front.lie = 1000
    with store_of(root, origin) as store:
        assert (await store.fetch(origin.source())).digest == DIGEST


async def test_a_server_that_has_too_many_of_us(root: Path, origin: Origin) -> None:
    origin.front.refusals.extend([(429, {}), (503, {}), (500, {})])
    with store_of(root, origin) as store:
        assert (await store.fetch(origin.source())).digest == DIGEST


async def test_a_server_that_is_down(root: Path, origin: Origin) -> None:
    origin.front.refusals.extend([(500, {})] * 60)
    with store_of(root, origin) as store:
        with pytest.raises(DownloadFailed, match="try again") as caught:
            await store.fetch(origin.source())
        assert origin.source() in caught.value.message or origin.scheme == "hf"
        assert nothing_kept(root)


async def test_a_missing_file(root: Path, origin: Origin) -> None:
    with store_of(root, origin) as store:
        with pytest.raises(SourceNotFound, match=r"none\.gguf"):
            await store.fetch(origin.source("none.gguf"))
        assert nothing_kept(root)
        assert not any((root / "partial").iterdir())


async def test_a_refusal(root: Path, origin: Origin) -> None:
    origin.front.refusals.extend([(403, {})] * 8)
    with store_of(root, origin) as store:
        with pytest.raises(SourceForbidden):
            await store.fetch(origin.source())
        assert nothing_kept(root)


async def test_nobody_there(root: Path, origin: Origin) -> None:
    origin.front.url = "http://127.0.0.1:9"
    with store_of(root, origin) as store:
        with pytest.raises(DownloadFailed) as caught:
            await store.fetch(origin.source())
        assert "try again" in caught.value.message


async def test_no_room_is_told_before_the_transfer(
    root: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=len(CONTENT), total=len(CONTENT), used=0)
    monkeypatch.setattr("modelyard.store.source.shutil.disk_usage", lambda folder: free)
    with store_of(root, origin) as store:
        with pytest.raises(DiskFull, match=r"needs 19\.8 MB, 3\.0 MB are free"):
            await store.fetch(origin.source())
        assert nothing_kept(root)


async def test_a_stop_ends_a_transfer_that_stands_still(root: Path, origin: Origin) -> None:
    origin.front.flowing.clear()
    with store_of(root, origin) as store:
        task = asyncio.create_task(store.fetch(origin.source()))
        await until(lambda: origin.front.busy == 4)
        clock = asyncio.get_running_loop().time
        before = clock()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert clock() - before < 5
        assert nothing_kept(root)
        origin.front.flowing.set()
        assert (await store.fetch(origin.source())).digest == DIGEST


async def test_the_bandwidth_is_that_of_all_transfers(root: Path, origin: Origin) -> None:
    origin.put("other.gguf", CONTENT)
    clock = asyncio.get_running_loop().time
    with store_of(root, origin, rate=6_000_000) as store:
        before = clock()
        await asyncio.gather(*(store.fetch(origin.source(name)) for name in (NAME, "other.gguf")))
        assert clock() - before > 0.8, "6 MB at 6 MB/s, but for what may come at once"


async def test_the_bytes_stay_the_same_ever_after(root: Path, origin: Origin) -> None:
    """The file is lost here, and another one lies there."""
    with store_of(root, origin) as store:
        file = await store.fetch(origin.source())
        file.path.unlink()
        assert (await store.fetch(origin.source())).digest == DIGEST
        file.path.unlink()
        origin.put(NAME, CONTENT[::-1])
        with pytest.raises((SourceNotFound, ChecksumMismatch)):
            await store.fetch(origin.source())
        assert store.cached(origin.source()) is None


@pytest.mark.parametrize("origin", ["ollama", "hf"], indirect=True)
async def test_a_byte_that_flips_on_its_way_is_found(root: Path, origin: Origin) -> None:
    origin.front.flipped = 2_000_000
    with store_of(root, origin) as store:
        with pytest.raises(ChecksumMismatch, match=DIGEST):
            await store.fetch(origin.source())
        assert nothing_kept(root)
        assert not any((root / "partial").iterdir())
        origin.front.flipped = None
        assert (await store.fetch(origin.source())).digest == DIGEST


@pytest.mark.parametrize("origin", ["http", "s3", "gs", "ollama"], indirect=True)
async def test_a_digest_in_the_source_is_held_to(root: Path, origin: Origin) -> None:
    with store_of(root, origin) as store:
        assert (await store.fetch(f"{origin.source()}#sha256={DIGEST}")).digest == DIGEST
        wrong = f"{origin.source()}#sha256={'0' * 64}"
        with pytest.raises((ChecksumMismatch, SourceNotFound), match=DIGEST):
            await store.fetch(wrong)
        assert store.cached(wrong) is None
    origin.front.flipped = 5
    with (
        store_of(root.with_name("second"), origin) as store,
        pytest.raises(ChecksumMismatch, match=DIGEST),
    ):
        await store.fetch(f"{origin.source()}#sha256={DIGEST}")


async def test_two_processes_fetch_once(root: Path, origin: Origin) -> None:
    origin.front.flowing.clear()
    processes = [await program(origin, root) for _ in range(2)]
    lock = root / "locks" / key_of(origin.source())
    await until(lambda: origin.front.busy and all(has_open(one.pid, lock) for one in processes))
    origin.front.flowing.set()
    for one in processes:
        out, _ = await asyncio.wait_for(one.communicate(), 30)
        assert out.decode().strip() == DIGEST
    assert sum(one.sent for one in origin.front.parts if one.sent > 10) == len(CONTENT)


@pytest.mark.parametrize("origin", ["http", "s3"], indirect=True)
async def test_ten_kills_lose_nothing_that_was_written_down(root: Path, origin: Origin) -> None:
    """What the state says is on the disk, and is not asked for again."""
    origin.front.rate = 1.5e6
    chance = random.Random(7)
    folder = root / "partial" / key_of(origin.source())
    known: list[tuple[int, int]] = []
    for _ in range(10):
        origin.front.asked.clear()
        await killed_after(origin, root, chance.randint(100_000, 300_000))
        held_to(origin, known)
        if (folder / "state").exists():
            known = [(begin, end) for begin, end in json.loads((folder / "state").read_text())["done"]]
            data = (folder / "data").read_bytes()
            assert all(data[begin:end] == CONTENT[begin:end] for begin, end in known)
    assert sum(end - begin for begin, end in known) > 50_000, "something was kept"
    origin.front.rate = 0
    origin.front.asked.clear()
    process = await program(origin, root)
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert out.decode().strip() == DIGEST
    held_to(origin, known)
    assert not folder.exists()


async def killed_after(origin: Origin, root: Path, sent: int) -> None:
    process = await program(origin, root)
    await until(lambda: origin.front.sent > sent or process.returncode is not None)
    with suppress(ProcessLookupError):
        process.kill()
    await process.communicate()


def held_to(origin: Origin, known: list[tuple[int, int]]) -> None:
    """No part was asked for that was known to be here. (One byte is what a question about the file costs.)"""
    asked = [one.range for one in origin.front.parts if one.range and one.range != (0, 1)]
    twice = [(a, b) for a in asked for b in known if max(a[0], b[0]) < min(a[1], b[1])]
    assert not twice


async def program(origin: Origin, root: Path) -> asyncio.subprocess.Process:
    argv = [sys.executable, PROGRAM, origin.scheme, origin.front.url, str(root), origin.source()]
    tests = str(Path(__file__).parent.parent)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    return await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, env=environ)


def has_open(pid: int, path: Path) -> bool:
    folder = Path(f"/proc/{pid}/fd")
    return any(Path(link).exists() and link.resolve() == path for link in folder.iterdir())
