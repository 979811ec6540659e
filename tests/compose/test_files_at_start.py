"""What an engine is started with: files that are what they were, looked at without being read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gateway.live_yard import LiveYard, fake, live_yard
from modelyard.core import actions as ac
from modelyard.core.types import Spec
from modelyard.engines.fake import FakeEngine
from modelyard.runtime.entries import Entry
from store.byte_source import weights
from store.test_changed_files import flip
from waiting import until


@pytest.fixture(autouse=True)
def with_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine has files, as others do; its processes are real."""

    def sources(_: FakeEngine, spec: Spec) -> Mapping[str, str]:
        return {"model": spec.source} if spec.source else {}

    monkeypatch.setattr(FakeEngine, "sources", sources)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(weights("model"))
    return path


def models(path: Path, **more: Any) -> dict[str, Any]:
    return {"m": fake(source=str(path), **more), "other": fake()}


def starts(yard: LiveYard) -> int:
    """How many engine processes were started for the model."""
    return sum(1 for note in yard.driver.notes.kept if note[1].kind == "ready")


def read_by_this_process() -> int:
    """Bytes that were read by any system call, of whatever file."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


async def test_an_unchanged_file_of_100_mb_is_not_read_to_start_an_engine(path: Path) -> None:
    size = 100_000_000
    with path.open("r+b") as file:
        file.truncate(size)
    # What the engine reads ahead is not what this is about.
    async with live_yard(models(path, warm_up={"read_ahead": False})) as yard:
        assert (await yard.chat("m")).status == 200
        assert yard.yard.store.hashed == size
        for _ in range(3):
            await yard.unload("m")
            before = read_by_this_process()
            assert (await yard.chat("m")).status == 200
            assert read_by_this_process() - before < 20_000_000
        assert yard.yard.store.hashed == size
        await yard.unload("m")
        os.utime(path)
        for _ in range(2):
            assert (await yard.chat("m")).status == 200
            await yard.unload("m")
            assert yard.yard.store.hashed == 2 * size


async def test_a_file_that_was_edited_in_place_is_found_before_the_engine_starts(path: Path) -> None:
    whole = path.read_bytes()
    async with live_yard(models(path)) as yard:
        assert (await yard.chat("m")).status == 200
        await yard.unload("m")
        started = starts(yard)
        flip(path)
        for _ in range(2):
            answer = await yard.chat("m")
            assert (answer.status, answer.code) == (503, "checksum_mismatch")
            assert answer.headers["x-should-retry"] == "false"
            for content in (whole, path.read_bytes()):
                assert sha256(content).hexdigest() in answer.message
        assert starts(yard) == started
        assert not yard.instances("m")
        assert (await yard.chat("other")).status == 200
        path.write_bytes(whole)
        await until(lambda: _version(yard).error_now(yard.driver._loop.time()) is None)
        assert (await yard.chat("m")).status == 200


async def test_an_edit_is_found_by_the_next_server_too_and_told_to_who_asks(
    path: Path, tmp_path: Path
) -> None:
    server = {"data_dir": str(tmp_path / "data")}
    async with live_yard(models(path), server=server) as yard:
        await yard.load("m")
    flip(path)
    async with live_yard(models(path, preload=True), server=server) as yard:
        answer = await yard.post("/admin/models/m/load")
        assert (answer.status, answer.code) == (503, "checksum_mismatch")
        assert not starts(yard)
    flip(path)
    async with live_yard(models(path), server=server) as yard:
        await yard.load("m")
        flip(path)
        await yard.unload("m")
        assert (await yard.post("/admin/models/m/load")).code == "checksum_mismatch"
        told = (await yard.http.get("/admin/explain/m")).json()["story"]
        assert any("are not what they were (checksum_mismatch)" in line["text"] for line in told)


async def test_a_promise_of_the_configuration_is_kept(path: Path) -> None:
    digest = sha256(path.read_bytes()).hexdigest()
    async with live_yard(models(path, sha256=digest)) as yard:
        assert (await yard.chat("m")).status == 200
    async with live_yard(models(path, sha256="0" * 64)) as yard:
        answer = await yard.chat("m")
        assert (answer.status, answer.code) == (503, "checksum_mismatch")
        assert digest in answer.message
        assert "0" * 64 in answer.message


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_pickle_starts_only_where_it_is_allowed(path: Path, allowed: bool) -> None:
    path.write_bytes(b"\x80\x04K\x01.")
    async with live_yard(models(path, allow_pickle=allowed)) as yard:
        answer = await yard.chat("m")
        if allowed:
            assert answer.status == 200
        else:
            assert (answer.status, answer.code) == (503, "bad_file")
            assert "allow_pickle: true" in answer.message
            assert not starts(yard)


async def test_a_removed_file_is_fetched_again_while_its_request_waits(path: Path, tmp_path: Path) -> None:
    """As files of a cache are; one that is known to be gone is not even tried."""
    async with live_yard(models(path)) as yard:
        assert (await yard.chat("m")).status == 200
        store = yard.yard.store
        await yard.unload("m")
        (item,) = store.shelf.items()
        assert item.users == ("m",)
        store._index.forget(next(store._index.of(path)))  # as a prune of another process
        failed = len(yard.notes("failed"))
        assert (await yard.chat("m")).status == 200
        assert "are fetched again" in yard.notes("failed")[failed]
        await yard.unload("m")
        store.shelf.on_removed(path)  # as a prune of this one
        await until(lambda: _version(yard).files.value == "absent")
        failed = len(yard.notes("failed"))
        assert (await yard.chat("m")).status == 200
        assert len(yard.notes("failed")) == failed


async def test_files_that_go_right_after_a_start_was_decided_are_fetched_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live_yard(models(path)) as yard:
        await yard.load("m")
        await yard.unload("m")
        driver = yard.driver
        entry = driver.entries[_version(yard).key]
        begin = driver.commands.start

        def start(action: ac.Start, of: Entry) -> None:
            begin(action, of)
            monkeypatch.setattr(driver.commands, "start", begin)
            entry.files = None

        monkeypatch.setattr(driver.commands, "start", start)
        assert (await yard.chat("m")).status == 200
        assert "are fetched again" in yard.notes("failed")[-1]


async def test_files_are_kept_while_their_engine_runs_or_their_policy_wants_it(path: Path) -> None:
    async with live_yard(models(path, pin=True)) as yard:
        await yard.load("m")
        store = yard.yard.store
        instance = yard.ready("m")
        assert instance is not None
        assert instance.id in store._held
        assert set(store.shelf.kept()) == {path}
        await yard.unload("m")
        assert instance.id not in store._held


def _version(yard: LiveYard) -> Any:
    return next(one for one in yard.state.versions.values() if one.spec.model == "m")


async def test_the_stores_settings_are_in_force(path: Path) -> None:
    settings = {"quota": "1MB", "verify_every": "50ms"}
    async with live_yard(models(path), store=settings) as yard:
        store = yard.yard.store
        assert store.shelf.quota == 1_000_000
        await yard.load("m")
        size = path.stat().st_size
        await until(lambda: store.hashed >= 3 * size)  # at the first use, and twice on schedule
        assert store.verified.exists()
