"""Quantized files in the store: made once, whole or not at all, each of its own parent, type and tool."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from modelyard.engines.gguf import read_header
from modelyard.errors import BadGguf, DiskFull, QuantizeFailed
from modelyard.store import Derived, Progress, Store, StoredFile
from store.test_quantize import random_gguf, stand_in
from store.test_store import files_below
from waiting import until

pytest.importorskip("gguf")
FILES = "while [ $# -gt 3 ]; do shift; done"  # options come before
COPIES = f'{FILES}; echo run >> "$(dirname $0)/runs"; cp $1 $2'
HANGS = 'echo $$ >> "$(dirname $0)/runs"; exec sleep 60'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return random_gguf(tmp_path / "f16.gguf")


@pytest.fixture
def bin(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def runs(folder: Path) -> list[str]:
    path = folder / "runs"
    return path.read_text().splitlines() if path.exists() else []


def nothing_made(root: Path) -> bool:
    return not files_below(root, "blobs", "work")


async def made(store: Store, derived: Derived, source: Path, type: str) -> StoredFile:
    return await derived.make(await store.fetch(str(source)), type)


async def test_a_file_is_made_once_and_found_again(root: Path, source: Path) -> None:
    steps: list[Progress] = []
    with closing(Store(root)) as store:
        derived = Derived(store)
        parent = await store.fetch(str(source))
        assert derived.cached(parent, "q8_0") is None
        with capture_logs() as said:
            both = await asyncio.gather(*(derived.make(parent, "q8_0", steps.append) for _ in range(2)))
        assert [line["event"] for line in said] == ["quantize.begins", "quantize.kept"]
        file = both[0]
        assert both[1] == derived.cached(parent, "q8_0") == await derived.recheck(parent, "q8_0") == file
        assert file.path == root / "blobs" / "sha256" / file.digest
        assert read_header(file.path).fields["general.file_type"] == 7
        assert derived.cached(parent, "q4_0") is None
        total = read_header(source).tensor_bytes
        assert [step.total for step in steps if step.total != file.size][-1] == total, "then it is hashed"
        assert steps[-1].done == file.size
        assert not files_below(root, "work")
    with closing(Store(root)) as store:
        assert Derived(store).cached(parent, "q8_0") == file


async def test_what_is_quantized_already_is_named_as_such(root: Path, source: Path) -> None:
    with closing(Store(root)) as store:
        derived = Derived(store)
        first = await made(store, derived, source, "q8_0")
        with capture_logs() as said:
            second = await derived.make(first, "q4_0")
    (line, _) = said
    assert (line["event"], line["of"], line["type"]) == ("quantize.requantizes", "q8_0", "q4_0")
    assert read_header(second.path).fields["modelyard.quantized_from"] == "q8_0"


async def test_another_parent_has_another_file(root: Path, source: Path, tmp_path: Path) -> None:
    with closing(Store(root)) as store:
        derived = Derived(store)
        first = await made(store, derived, source, "q8_0")
        other = random_gguf(source.with_name("other.gguf"), {"a.weight": ((256, 64), 1)})
        second = await made(store, derived, other, "q8_0")
    assert first.digest != second.digest


async def test_two_processes_make_it_once(
    root: Path, source: Path, bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(bin, monkeypatch, f"sleep 0.3; {COPIES}")
    both = [in_a_process(root, source) for _ in range(2)]
    paths = [process.communicate(timeout=50)[0].splitlines()[-1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert paths[0] == paths[1]
    assert runs(bin) == ["run"]


async def test_a_process_that_is_killed_leaves_nothing_half(
    root: Path, source: Path, bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(bin, monkeypatch, HANGS)
    process = in_a_process(root, source)
    await until(lambda: runs(bin))
    process.kill()
    process.communicate(timeout=50)
    os.kill(int(runs(bin)[0]), signal.SIGKILL)
    (bin / "runs").unlink()
    stand_in(bin, monkeypatch, COPIES)
    with closing(Store(root)) as store:
        assert nothing_made(root)
        file = await made(store, Derived(store), source, "q4_k_m")
        assert read_header(file.path)
    assert runs(bin) == ["run"]


async def test_a_making_that_nobody_wants_is_stopped(
    root: Path, source: Path, bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(bin, monkeypatch, HANGS)
    with closing(Store(root)) as store:
        making = asyncio.create_task(made(store, Derived(store), source, "q4_k_m"))
        await until(lambda: runs(bin))
        making.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(making, 20)
    assert not Path(f"/proc/{runs(bin)[0]}").exists()
    assert nothing_made(root)


@pytest.mark.parametrize(
    ("script", "error", "word"),
    [
        ("echo cannot do that; exit 3", QuantizeFailed, "ended with 3: cannot do that"),
        ("exit 0", QuantizeFailed, "wrote no file"),
        (f"{FILES}; head -c 3000 $1 > $2", BadGguf, "quantized"),
        ("echo No space left on device; exit 1", DiskFull, "needs more"),
    ],
)
async def test_a_tool_that_fails(
    root: Path,
    source: Path,
    bin: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    error: type[Exception],
    word: str,
) -> None:
    stand_in(bin, monkeypatch, script)
    with closing(Store(root)) as store:
        with pytest.raises(error, match=word):
            await made(store, Derived(store), source, "q4_k_m")
        assert nothing_made(root)
        stand_in(bin, monkeypatch, COPIES)
        assert await made(store, Derived(store), source, "q4_k_m")


async def test_progress_of_llama_quantize_is_passed_on(
    root: Path, source: Path, bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = 'echo "[   3/   4]   blk.0.attn_q.weight - [256, 256, 1, 1], type = f16, converting to q4_K"'
    stand_in(bin, monkeypatch, f"{line}; {COPIES}")
    steps: list[Progress] = []
    with closing(Store(root)) as store:
        derived = Derived(store)
        await derived.make(await store.fetch(str(source)), "q4_k_m", steps.append)
    total = read_header(source).tensor_bytes
    assert (steps[0].done, steps[0].total) == (total // 2, total)


async def test_a_quota_holds_for_what_is_made(root: Path, source: Path) -> None:
    with closing(Store(root, quota=10_000)) as store:
        with pytest.raises(DiskFull, match="quota"):
            await made(store, Derived(store), source, "q8_0")
        assert nothing_made(root)


async def test_a_type_that_cannot_be_made(root: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with closing(Store(root)) as store:
        with pytest.raises(QuantizeFailed, match="llama-quantize"):
            await made(store, Derived(store), source, "q4_k_m")
        assert "is made by the store alone" in (store.problem("quantized://a/q8_0/gguf-1") or "")


def in_a_process(root: Path, source: Path) -> subprocess.Popen[str]:
    code = (
        "import asyncio, sys; from pathlib import Path; from modelyard.store import Derived, Store\n"
        "async def make(root, source):\n"
        "    store = Store(Path(root)); derived = Derived(store)\n"
        "    print((await derived.make(await store.fetch(source), 'q4_k_m')).path)\n"
        "asyncio.run(make(*sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root), str(source)], stdout=subprocess.PIPE, text=True
    )
