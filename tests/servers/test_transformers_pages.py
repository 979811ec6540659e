"""Memory by its pages: what a block shows of files, and what of it is our own."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelyard.servers.transformers.pages import HUGE, Block, Source, files_in_memory

SIZE = 3 * HUGE + 5000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(mmap.PAGESIZE + SIZE))
    return path


def source(path: Path) -> Source:
    return Source(str(path), os.open(path, os.O_RDONLY))


def bytes_of(block: Block, size: int = SIZE) -> bytes:
    return ctypes.string_at(block.address, size)


def anonymous(block: Block) -> int:
    """Bytes of the block that are memory of this process alone."""
    held, within = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            start, end = (int(one, 16) for one in name.split("-"))
            within = block.address <= start and end <= block.address + block.size
        elif name == "Anonymous:" and within:
            held += int(rest[0]) << 10
    return held


def test_a_file_is_shown_without_memory_and_becomes_our_own_with_the_same_bytes(path: Path) -> None:
    block = Block(SIZE)
    block.show(0, SIZE, source(path), mmap.PAGESIZE)
    expected = path.read_bytes()[mmap.PAGESIZE :]
    assert bytes_of(block) == expected
    assert anonymous(block) == 0
    done = threading.Event()
    wrong: list[bool] = []

    def read() -> None:
        while not done.is_set():
            wrong.append(bytes_of(block) != expected)

    reader = threading.Thread(target=read)
    reader.start()
    copy = threading.Thread(target=lambda: block.own([(0, SIZE)], threading.Event()))
    copy.start()  # a thread of its own is made nice, not this one
    copy.join(30)
    done.set()
    reader.join(30)
    assert wrong
    assert not any(wrong)
    assert anonymous(block) >= SIZE
    path.write_bytes(bytes(len(expected)))  # what is ours does not change with the file
    assert bytes_of(block) == expected
    block.clear()
    assert anonymous(block) == 0
    assert bytes_of(block) == bytes(SIZE)


def test_to_stop_leaves_what_is_not_copied_as_it_is(path: Path) -> None:
    block, stop = Block(SIZE), threading.Event()
    block.show(0, SIZE, source(path), 0)
    stop.set()
    said: list[bool] = []
    copy = threading.Thread(target=lambda: said.append(block.own([(0, SIZE)], stop)))
    copy.start()
    copy.join(30)
    assert said == [False]
    assert anonymous(block) == 0
    assert bytes_of(block) == path.read_bytes()[:SIZE]


@pytest.mark.parametrize("change", ["written", "cut"])
def test_a_file_that_has_changed_is_not_shown(path: Path, change: str) -> None:
    block, known = Block(SIZE), source(path)
    with path.open("r+b") as file:
        if change == "cut":
            file.truncate(SIZE)
        else:
            os.utime(file.fileno(), ns=(1, 1))
    with pytest.raises(OSError, match="weights has changed since"):
        block.show(0, SIZE, known, 0)


def test_a_file_that_was_replaced_is_shown_as_it_was(path: Path) -> None:
    block, known, before = Block(SIZE), source(path), path.read_bytes()
    other = path.with_name("other")
    other.write_bytes(bytes(len(before)))
    other.rename(path)
    block.show(0, SIZE, known, 0)
    assert bytes_of(block) == before[:SIZE]


@contextmanager
def mapping(path: Path, flags: int = mmap.MAP_PRIVATE) -> Iterator[mmap.mmap]:
    with path.open("r+b") as file:
        view = mmap.mmap(file.fileno(), 2 * mmap.PAGESIZE, flags=flags, offset=mmap.PAGESIZE)
    try:
        yield view
    finally:
        view.close()


def test_what_lies_in_a_file_is_known_until_it_is_written_to(path: Path) -> None:
    with mapping(path) as view:
        (found,) = (one for one in files_in_memory() if one.path == str(path))
        assert (found.offset, found.end - found.start) == (mmap.PAGESIZE, 2 * mmap.PAGESIZE)
        assert ctypes.string_at(found.start, 100) == view[:100]
        opened = found.opened()
        assert opened is not None
        assert os.pread(opened.file, 100, found.offset) == view[:100]
        path.rename(path.with_name("other"))
        assert found.opened() is None
        path.write_bytes(b"")
        assert found.opened() is None, "another file by its name"
        path.with_name("other").rename(path)
        view[0] = (view[0] + 1) % 256
        assert not [one for one in files_in_memory() if one.path == str(path)]


def test_a_file_that_is_shared_with_others_is_not_ours_to_rely_on(path: Path) -> None:
    with mapping(path, mmap.MAP_SHARED):
        assert not [one for one in files_in_memory() if one.path == str(path)]
