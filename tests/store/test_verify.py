"""Verification: every file read again, one at a time, no faster than it is told; what changed is said."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from modelyard.store import LocalFiles, Store, Terms
from modelyard.store.verify import Verdict, keep_verifying, verify
from store.byte_source import Bytes, weights
from store.test_changed_files import flip
from waiting import until

CONTENT = {name: weights(name) for name in ("a", "b")}
ANY = Terms()


def opened(root: Path) -> Store:
    return Store(root, [Bytes(CONTENT), LocalFiles()])


async def verdicts(store: Store, rate: float = 1e9) -> dict[str, str]:
    found: list[Verdict] = [verdict async for verdict in verify(store, rate=rate)]
    return {verdict.item.sources[0]: verdict.problem for verdict in found}


async def test_what_changed_is_said_and_set_aside_where_it_was_fetched(tmp_path: Path) -> None:
    local = tmp_path / "local.gguf"
    local.write_bytes(weights("local"))
    with closing(opened(tmp_path / "store")) as store:
        a, _, mine = [await store.fetch(source, ANY) for source in ("bytes://a", "bytes://b", str(local))]
        assert await verdicts(store) == {"bytes://a": "", "bytes://b": "", str(local): ""}
        removed: list[Path] = []
        store.shelf.on_removed = removed.append
        flip(a.path)
        flip(local)
        found = await verdicts(store)
        assert found["bytes://b"] == ""
        for source, file in (("bytes://a", a), (str(local), mine)):
            assert f"{file.digest} was promised" in found[source]
        assert removed == [a.path]
        assert not a.path.exists()
        assert (tmp_path / "store" / "quarantine" / sha256(_flipped(CONTENT["a"])).hexdigest()).exists()
        assert local.exists()
        assert set(await verdicts(store)) == {"bytes://b", str(local)}
        assert (await store.fetch("bytes://a", ANY)).path.read_bytes() == CONTENT["a"]


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


async def test_what_was_only_touched_is_not_read_again_by_the_next_start(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        a = await store.fetch("bytes://a", ANY)
        os.utime(a.path)
        assert await verdicts(store) == {"bytes://a": ""}
        assert store.cached("bytes://a", ANY) == a


async def test_it_reads_no_faster_than_it_is_told(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        await store.fetch("bytes://a", ANY)
        began = time.monotonic()
        await verdicts(store, rate=10_000)
        assert time.monotonic() - began >= 0.19


async def test_it_can_be_stopped(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        await store.fetch("bytes://a", ANY)
        task = asyncio.create_task(verdicts(store, rate=1))
        await until(lambda: store.hashed > len(CONTENT["a"]))
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled()


async def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(opened(tmp_path)) as store:
        await store.fetch("bytes://a", ANY)

        def refused(*_: object) -> str:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(store._intake, "verify", refused)
        assert "cannot be read: Permission denied" in (await verdicts(store))["bytes://a"]


async def test_a_schedule_goes_on_over_restarts(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        a = await store.fetch("bytes://a", ANY)
        flip(a.path)
        with capture_logs() as said:
            task = asyncio.create_task(keep_verifying(store, 3600.0))
            await until(store.verified.exists)
        assert [line["event"] for line in said] == ["file.not_what_it_was"]
        read = store.hashed
        again = asyncio.create_task(keep_verifying(store, 3600.0))
        soon = asyncio.create_task(keep_verifying(store, 0.01))
        await store.fetch("bytes://b", ANY)
        await until(lambda: store.hashed >= read + 2 * len(CONTENT["b"]))
        for one in (task, again, soon):
            assert not one.done()
            one.cancel()
        await asyncio.wait({task, again, soon}, timeout=5)
