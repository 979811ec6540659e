"""What is left of a download: what it says is on the disk, and it goes when nobody comes back for it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import DownloadFailed
from modelyard.store import transfer
from modelyard.store.pace import Bandwidth, Pace
from modelyard.store.partial import Partials, Range, State, gaps, merged
from modelyard.store.source import Watch
from modelyard.store.transfer import Answer, download

CONTENT = bytes(range(256)) * 400


class Memory:
    """A `transfer.Remote` without a network; `cuts` are bytes after which an answer ends with a failure."""

    def __init__(self, *cuts: int) -> None:
        self.cuts = list(cuts)
        self.asked: list[Range] = []

    @contextmanager
    def open(self, begin: int, end: int | None, validator: str) -> Iterator[Answer]:
        end = min(end or len(CONTENT), len(CONTENT))
        self.asked.append((begin, end))
        yield Answer(begin, len(CONTENT), "same", True, self._chunks(begin, end))

    def _chunks(self, begin: int, end: int) -> Iterator[bytes]:
        cut = self.cuts.pop(0) if self.cuts else end - begin
        for at in range(begin, begin + cut, 500):
            yield CONTENT[at : min(at + 500, begin + cut, end)]
        if begin + cut < end:
            raise DownloadFailed("cut")

    def abort(self) -> None:
        pass


def fetched(folder: Path, remote: Memory, connections: int = 1) -> bytes:
    pace = Pace(connections, Bandwidth(), ())
    folder.mkdir(exist_ok=True)
    return download(remote, folder, Watch("a", 60), pace, identity="a").read_bytes()


def test_the_state_never_says_more_than_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine loses that was not synced: what the state names is there."""
    synced = b""
    written: list[State] = []
    data, write = tmp_path / "a" / "data", State.write

    def fdatasync(file: int) -> None:
        nonlocal synced
        synced = data.read_bytes()

    def noted(state: State, folder: Path) -> None:
        assert all(synced[begin:end] == CONTENT[begin:end] for begin, end in state.done)
        written.append(state)
        write(state, folder)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(State, "write", noted)
    monkeypatch.setattr(transfer, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr(transfer, "PIECE", 20_000)
    assert fetched(tmp_path / "a", Memory(), connections=3) == CONTENT
    assert len(written) > 5
    assert written[-1].done == ((0, len(CONTENT)),)


def test_a_next_try_asks_for_the_rest_alone(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed):
        fetched(tmp_path / "a", Memory(30_000))
    again = Memory()
    assert fetched(tmp_path / "a", again) == CONTENT
    assert again.asked == [(30_000, len(CONTENT))]
    third = Memory()
    assert fetched(tmp_path / "a", third) == CONTENT
    assert third.asked == [], "it is whole"


@pytest.mark.parametrize("damage", ["state gone", "state torn", "data gone", "data short", "another file"])
def test_what_cannot_be_trusted_is_not_used(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "a"
    with pytest.raises(DownloadFailed):
        fetched(folder, Memory(30_000))
    if damage == "state gone":
        (folder / "state").unlink()
    if damage == "state torn":
        (folder / "state").write_bytes((folder / "state").read_bytes()[:-5])
    if damage == "data gone":
        (folder / "data").unlink()
    if damage == "data short":
        os.truncate(folder / "data", 29_999)
    if damage == "another file":
        State("another", len(CONTENT), "same", ((0, 30_000),)).write(folder)
    again = Memory()
    assert fetched(folder, again) == CONTENT
    assert again.asked[0][0] == 0


def test_what_nobody_comes_back_for_is_removed(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    Partials(tmp_path)
    for name in ("old", "new", "held"):
        folder = tmp_path / "partial" / name
        folder.mkdir()
        (folder / "data").write_bytes(b"x")
        if name != "new":
            for path in (folder / "data", folder):
                os.utime(path, (1, 1))
    with (tmp_path / "locks" / "held").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Partials(tmp_path)
    assert {one.name for one in (tmp_path / "partial").iterdir()} == {"new", "held"}


ranges = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: (min(pair), max(pair))))


@given(ranges, st.integers(0, 60))
def test_ranges_and_gaps_are_the_whole(done: list[Range], size: int) -> None:
    here = {at for begin, end in done for at in range(begin, end)}
    assert {at for begin, end in merged(done) for at in range(begin, end)} == here
    missing = [at for begin, end in gaps(done, size) for at in range(begin, end)]
    assert missing == [at for at in range(size) if at not in here]
    apart = merged(done)
    assert all(one[1] < other[0] for one, other in pairwise(apart))
