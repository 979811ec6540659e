"""What is read ahead, and what is left alone."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from modelyard.runtime import read_ahead as module
from modelyard.runtime.read_ahead import CHUNK, read_ahead, resident

SIZE = 3 * CHUNK + 5


def cold(path: Path) -> Path:
    """A file of which nothing is in the page cache."""
    path.write_bytes(bytes(SIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path) > 0.1:
        pytest.skip("this file system keeps what it is told to forget")
    return path


def test_a_file_that_was_just_written_is_resident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    path.write_bytes(bytes(SIZE))
    assert resident(path) == 1.0
    monkeypatch.setattr(module, "_WINDOW", CHUNK)
    assert resident(path) == 1.0
    assert read_ahead([path], SIZE, threading.Event()) == 0
    path.write_bytes(b"")
    assert resident(path) == 1.0


def test_a_cold_file_is_read_whole(tmp_path: Path) -> None:
    path = cold(tmp_path / "model")
    assert read_ahead([path], SIZE, threading.Event()) == SIZE
    assert resident(path) == 1.0


def test_what_does_not_fit_into_the_room_is_left_alone(tmp_path: Path) -> None:
    files = [cold(tmp_path / "a"), cold(tmp_path / "b")]
    assert read_ahead(files, SIZE - 1, threading.Event()) == 0
    assert read_ahead(files, 2 * SIZE - 1, threading.Event()) == SIZE
    assert resident(files[1]) < 0.1


def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    path, stop = cold(tmp_path / "model"), threading.Event()
    stop.set()
    assert read_ahead([path], SIZE, stop) == 0


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_ahead([tmp_path / "model"], SIZE, threading.Event())
